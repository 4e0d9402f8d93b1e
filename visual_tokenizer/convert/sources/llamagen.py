"""LlamaGen's tokenizers (`vq_ds16_c2i.pt`, `vq_ds8_c2i.pt`, `vq_ds16_t2i.pt`) and the original Janus's.

Paper: Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation (Sun et al., 2024), arXiv:2406.06525,
section 2.1; code FoundationVision/LlamaGen. Latents and codes are normalised before the search, and normalised codes
are decoded. `quantize.codebook_used`, a record of recent indices, is left out. DeepSeek's own layout of Janus
(`gen_vision_model.…`) is this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.convert.links import Link, Weights
from visual_tokenizer.convert.sources.base import PublishedSource, PublishedSourceConfig, require_parts
from visual_tokenizer.convert.vqgan_layout import CODEBOOK, Names, vq_section, whole_vqgan, whole_vqgan_links
from visual_tokenizer.errors import UserError

NAMES = replace(
    Names(),
    down_block="encoder.conv_blocks.{level}.res.{block}",
    down_attention="encoder.conv_blocks.{level}.attn.{block}",
    down_attention_norm="encoder.conv_blocks.{level}.attn.{block}.norm",
    downsample="encoder.conv_blocks.{level}.downsample.conv",
    up_block="decoder.conv_blocks.{level}.res.{block}",
    up_attention="decoder.conv_blocks.{level}.attn.{block}",
    up_attention_norm="decoder.conv_blocks.{level}.attn.{block}.norm",
    upsample="decoder.conv_blocks.{level}.upsample.conv",
    middle=("mid.0", "mid.1", "mid.2"),
    middle_attention_norm="mid.1.norm",
    counts_upwards=True,
)


@dataclass(kw_only=True)
class LlamaGenConfig(PublishedSourceConfig):
    """Fields of the source of LlamaGen's tokenizers."""

    normalize: bool = True
    """Whether codes and latents are put on the unit sphere (`codebook_l2_norm`), as in all published weights."""


class LlamaGen(PublishedSource):
    """VQGAN's structure under other names."""

    Config = LlamaGenConfig
    anchor = "encoder.conv_blocks.0.res.0.conv1.weight"
    beside = ("quantize.codebook_used",)
    about = "LlamaGen (Sun et al., 2024), https://github.com/FoundationVision/LlamaGen"

    def describe(self, published: Weights, image_size: int, settings: Mapping[str, Any]) -> VisualTokenizerConfig:
        quantizer = vq_section(published, normalize=self.config.normalize)
        return whole_vqgan(published, NAMES, image_size, quantizer)

    def links(self, config: VisualTokenizerConfig) -> list[Link]:
        require_parts(config, "llamagen", encoder=("cnn",), quantizer=("vq",), decoder=("cnn",))
        if config.quantizer["normalize"] != self.config.normalize:
            raise UserError(f"normalize must be {config.quantizer['normalize']}, as in the tokenizer's quantizer")
        return [*whole_vqgan_links(config, NAMES), CODEBOOK]
