"""IBQ's tokenizers (`imagenet256_*.ckpt`, `IBQ_pretrain_*.ckpt`).

Paper: Scalable Image Tokenization with Index Backpropagation Quantization (Shi et al., 2024), arXiv:2412.02692; code
TencentARC/SEED-Voken. VQGAN's network; the code of the largest inner product is taken. Averaged weights are used where
the checkpoint has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.convert.links import Link, Weights
from visual_tokenizer.convert.reading import EMA, with_averages
from visual_tokenizer.convert.sources.base import PublishedSource, PublishedSourceConfig, require_parts
from visual_tokenizer.convert.vqgan_layout import CODEBOOK, Names, vq_section, whole_vqgan, whole_vqgan_links

NAMES = Names()


@dataclass(kw_only=True)
class IBQConfig(PublishedSourceConfig):
    """Fields of the source of IBQ's tokenizers."""

    use_averages: bool = True
    """Whether averaged weights are taken where the checkpoint has them, as the published evaluation does."""


class IBQ(PublishedSource):
    """VQGAN's layout, searched by inner products."""

    Config = IBQConfig
    anchor = "encoder.conv_in.weight"
    beside = ("loss.", "colorize", "quantize.used", EMA)
    resample: ClassVar[Image.Resampling] = Image.Resampling.BILINEAR
    about = "IBQ (Shi et al., 2024), https://github.com/TencentARC/SEED-Voken"

    def own(self, tensors: Weights) -> dict[str, Tensor]:
        return super().own(with_averages(tensors) if self.config.use_averages else tensors)

    def describe(self, published: Weights, image_size: int, settings: Mapping[str, Any]) -> VisualTokenizerConfig:
        # mean(‖z_q − z‖²) is the estimator's; the other two terms are weighted as VQGAN's first code did.
        quantizer = vq_section(published, estimator={"type": "index_backpropagation"}, loss_weighting="legacy")
        return whole_vqgan(published, NAMES, image_size, quantizer)

    def links(self, config: VisualTokenizerConfig) -> list[Link]:
        require_parts(config, "ibq", encoder=("cnn",), quantizer=("vq",), decoder=("cnn",))
        return [*whole_vqgan_links(config, NAMES), CODEBOOK]
