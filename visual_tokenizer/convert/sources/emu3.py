"""Emu3's vision tokenizer: transformers' `Emu3VQVAE`, a whole Emu3, or the original Emu3-VisionTokenizer.

Paper: Emu3: Next-Token Prediction is All You Need (Wang et al., 2024), arXiv:2409.18869, section 2.2; original code
baaivision/Emu3. Both layouts are read; transformers' is written. Clips are (B, 3, T, H, W) here, T a multiple of 4.
The published model takes pictures of any size whose sides are multiples of 8 without cropping them, which the tokenizer
does as well; only the processor beside it makes them square.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.convert.links import Link, Weights, batch_norm, count_numbered, layer
from visual_tokenizer.convert.sources.base import PublishedSource, PublishedSourceConfig, require_parts
from visual_tokenizer.convert.vqgan_layout import (
    CODEBOOK,
    Names,
    decoder_links,
    decoder_shape,
    encoder_links,
    encoder_shape,
    vq_section,
    whole_size,
)
from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.errors import UserError

ORIGINAL = Names()

TRANSFORMERS = replace(
    Names(),
    down_block="encoder.down_block.down.{level}.block.{block}",
    down_attention="encoder.down_block.down.{level}.attn.{block}",
    down_attention_norm="encoder.down_block.down.{level}.attn_norms.{block}",
    downsample="encoder.down_block.down.{level}.downsample.conv",
    up_block="decoder.up_block.up.{level}.block.{block}",
    up_attention="decoder.up_block.up.{level}.attn.{block}",
    up_attention_norm="decoder.up_block.up.{level}.attn_norms.{block}",
    upsample="decoder.up_block.up.{level}.upsample.conv",
    middle=("middle_block.block_1", "middle_block.attn_1", "middle_block.block_2"),
    middle_attention_norm="middle_block.attn_norm",
    query_key_value=("q_proj", "k_proj", "v_proj"),
    projection="out_proj",
    attention_ones=-2,
)


@dataclass(kw_only=True)
class Emu3Config(PublishedSourceConfig):
    """Fields of the source of Emu3's tokenizer."""


class Emu3(PublishedSource):
    """VQGAN on frames, convolutions over time, norms modulated by the codes."""

    Config = Emu3Config
    anchor = "encoder.conv_in.weight"
    published_size = 512
    about = "Emu3 (Wang et al., 2024), https://github.com/baaivision/Emu3"

    def describe(self, published: Weights, image_size: int, settings: Mapping[str, Any]) -> VisualTokenizerConfig:
        heads = settings.get("vq_config", settings).get("num_attention_heads", 1)
        if heads != 1:
            raise UserError(f"attention has 1 head here, as in the published tokenizer, got {heads}")
        names = _names(published)
        size = whole_size(image_size, len(encoder_shape(published, names, image_size)["channel_multipliers"]))
        quantizer = vq_section(published)
        time = {
            "time_halvings": count_numbered(published, "encoder.time_conv.{}.conv.conv.weight"),
            "time_blocks": count_numbered(published, "encoder.time_res_stack.{}.conv1.conv.weight"),
        }
        frames = {"type": "cnn", **encoder_shape(published, names, size)}
        if frames["latent_channels"] != quantizer["code_dim"]:
            raise UserError(
                f"a latent must have as many channels as a code, as in the published tokenizer: got "
                f"{frames['latent_channels']} and {quantizer['code_dim']}"
            )
        return VisualTokenizerConfig(
            image_size=size,
            encoder={"type": "movq", "frames": frames, **time},
            quantizer=quantizer,
            decoder={"type": "movq", **decoder_shape(published, names, size), **time},
        )

    def links(self, config: VisualTokenizerConfig) -> list[Link]:
        return self._links(config, TRANSFORMERS)

    def links_of(self, config: VisualTokenizerConfig, published: Weights) -> list[Link]:
        return self._links(config, _names(published))

    def _links(self, config: VisualTokenizerConfig, names: Names) -> list[Link]:
        require_parts(config, "emu3", encoder=("movq",), quantizer=("vq",), decoder=("movq",))
        encoder, decoder = EncoderConfig.family.config(config.encoder), DecoderConfig.family.config(config.decoder)
        links = encoder_links("encoder.frames", encoder.frames, config.image_size, names)
        links += decoder_links("decoder", decoder, config.image_size, names, stem="frame_stem", norm=_spatial_norm)
        for side, part in (("encoder", encoder), ("decoder", decoder)):
            for number in range(part.time_halvings):
                links += layer(f"{side}.time_convs.{number}.conv", f"{side}.time_conv.{number}.conv.conv")
            for number in range(part.time_blocks):
                ours, theirs = f"{side}.time_blocks.{number}", f"{side}.time_res_stack.{number}"
                for name in ("1", "2"):
                    links += batch_norm(f"{ours}.norm{name}", f"{theirs}.norm{name}")
                    links += layer(f"{ours}.conv{name}.conv", f"{theirs}.conv{name}.conv")
        links += layer("encoder.head.conv", "quant_conv.conv") + layer("decoder.stem.conv", "post_quant_conv.conv")
        return [*links, CODEBOOK]


def _names(published: Weights) -> Names:
    return TRANSFORMERS if "encoder.down_block.down.0.block.0.conv1.weight" in published else ORIGINAL


def _spatial_norm(ours: str, theirs: str) -> list[Link]:
    links = layer(f"{ours}.norm", f"{theirs}.norm_layer") + layer(f"{ours}.scale", f"{theirs}.conv_y")
    return links + layer(f"{ours}.shift", f"{theirs}.conv_b")
