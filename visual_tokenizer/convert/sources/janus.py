"""The image tokenizer of Janus and Janus-Pro as transformers has it: `JanusVQVAE`, or a whole Janus.

Paper: Janus: Decoupling Visual Encoding for Unified Multimodal Understanding and Generation (Wu et al., 2024),
arXiv:2410.13848, section 3.1: the tokenizer is LlamaGen's. The original searches the nearest code among normalised
vectors; transformers' encoder searches among the vectors as they are and normalises only what it decodes. This source
does what transformers does, so that indices are the same (`vq` without `normalize`, decoder `unit_sphere`). For the
original's indices load the original weights (`gen_vision_model.…` in DeepSeek's own layout) as `llamagen`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.convert.links import Link, Weights, layer
from visual_tokenizer.convert.sources.base import PublishedSource, PublishedSourceConfig, require_parts
from visual_tokenizer.convert.vqgan_layout import (
    CODEBOOK,
    Names,
    decoder_links,
    encoder_links,
    vq_section,
    whole_vqgan,
)
from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig

NAMES = replace(Names(), counts_upwards=True)


@dataclass(kw_only=True)
class JanusConfig(PublishedSourceConfig):
    """Fields of the source of Janus."""


class Janus(PublishedSource):
    """VQGAN's layout, the decoder's levels numbered in the order of use."""

    Config = JanusConfig
    anchor = "encoder.conv_in.weight"
    published_size = 384
    about = "Janus (Wu et al., 2024), https://github.com/deepseek-ai/Janus, as transformers has it"

    def size_in(self, settings: Mapping[str, Any]) -> int | None:
        vq = settings.get("vq_config", settings)
        if "num_patches" not in vq or "channel_multiplier" not in vq:
            return None
        return int(vq["num_patches"]) * 2 ** (len(vq["channel_multiplier"]) - 1)

    def describe(self, published: Weights, image_size: int, settings: Mapping[str, Any]) -> VisualTokenizerConfig:
        quantizer = vq_section(published, loss_weighting="legacy")
        config = whole_vqgan(published, NAMES, image_size, quantizer)
        config.decoder = {"type": "unit_sphere", "code_channels": quantizer["code_dim"], "decoder": config.decoder}
        return config

    def links(self, config: VisualTokenizerConfig) -> list[Link]:
        require_parts(config, "janus", encoder=("cnn",), quantizer=("vq",), decoder=("unit_sphere",))
        encoder, decoder = EncoderConfig.family.config(config.encoder), DecoderConfig.family.config(config.decoder)
        links = encoder_links("encoder", encoder, config.image_size, NAMES)
        links += decoder_links("decoder.decoder", decoder.decoder, config.image_size, NAMES)
        links += layer("to_codes", "quant_conv", ones=2) + layer("decoder.projection", "post_quant_conv", ones=2)
        return [*links, CODEBOOK]
