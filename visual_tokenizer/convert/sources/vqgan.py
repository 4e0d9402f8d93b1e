"""VQGAN's checkpoints (`model.ckpt`, `last.ckpt` of taming-transformers), plain and Gumbel.

Paper: Taming Transformers for High-Resolution Image Synthesis (Esser et al., 2021), arXiv:2012.09841; code
CompVis/taming-transformers. Discriminator and perceptual loss are left out. β weighs the codebook loss there, not the
commitment, which `loss_weighting: legacy` keeps for whoever trains on. A checkpoint with `quantize.embed` is a
GumbelVQ; its logits come from the latents after `quant_conv`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.convert.links import Link, Weights, layer
from visual_tokenizer.convert.sources.base import PublishedSource, PublishedSourceConfig, require_parts
from visual_tokenizer.convert.vqgan_layout import CODEBOOK, Names, vq_section, whole_vqgan, whole_vqgan_links

NAMES = Names()


@dataclass(kw_only=True)
class VQGANConfig(PublishedSourceConfig):
    """Fields of the source of VQGANs."""


class VQGAN(PublishedSource):
    """Encoder, decoder, `quantize.embedding`, and the two 1 × 1 convolutions beside it."""

    Config = VQGANConfig
    anchor = "encoder.conv_in.weight"
    beside = ("loss.", "colorize", "quantize.used")
    resample: ClassVar[Image.Resampling] = Image.Resampling.BILINEAR
    about = "VQGAN (Esser et al., 2021), https://github.com/CompVis/taming-transformers"

    def describe(self, published: Weights, image_size: int, settings: Mapping[str, Any]) -> VisualTokenizerConfig:
        if "quantize.embed.weight" in published:
            size, channels = published["quantize.embed.weight"].shape
            gumbel = {"type": "gumbel", "codebook_size": size, "code_dim": channels, "hard": True}
            return whole_vqgan(published, NAMES, image_size, gumbel)
        return whole_vqgan(published, NAMES, image_size, vq_section(published, loss_weighting="legacy"))

    def links(self, config: VisualTokenizerConfig) -> list[Link]:
        require_parts(config, "vqgan", encoder=("cnn",), quantizer=("vq", "gumbel"), decoder=("cnn",))
        links = whole_vqgan_links(config, NAMES)
        if config.quantizer["type"] == "vq":
            return [*links, CODEBOOK]
        links += layer("quantizer.to_logits", "quantize.proj", ones=2)
        return [*links, Link("quantizer.codebook", ("quantize.embed.weight",))]
