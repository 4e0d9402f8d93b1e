"""The layout of VQGAN's encoder and decoder under the names of its descendants.

Source: taming-transformers (Esser et al., 2021), arXiv:2012.09841, whose structure Chameleon, Janus, LlamaGen, IBQ and
Emu3 keep. Widths and depths are read off the weights, so that a state dict alone is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.convert.links import Link, Weights, count_numbered, layer, stacked_layer
from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.shape import CNNShape

Norm = Callable[[str, str], list[Link]]
"""Links the normalisation called so here to the one called so there."""


@dataclass(frozen=True)
class Names:
    """Where a layout keeps what; `{level}` counts from fine to coarse, `{block}` within a level, `{at}` is a block."""

    down_block: str = "encoder.down.{level}.block.{block}"
    down_attention: str = "encoder.down.{level}.attn.{block}"
    down_attention_norm: str = "encoder.down.{level}.attn.{block}.norm"
    downsample: str = "encoder.down.{level}.downsample.conv"
    up_block: str = "decoder.up.{level}.block.{block}"
    up_attention: str = "decoder.up.{level}.attn.{block}"
    up_attention_norm: str = "decoder.up.{level}.attn.{block}.norm"
    upsample: str = "decoder.up.{level}.upsample.conv"
    middle: tuple[str, str, str] = ("mid.block_1", "mid.attn_1", "mid.block_2")
    middle_attention_norm: str = "mid.attn_1.norm"
    query_key_value: tuple[str, str, str] = ("q", "k", "v")
    projection: str = "proj_out"
    attention_ones: int = 0
    """−2 where attention has linear maps instead of 1 × 1 convolutions."""

    counts_upwards: bool = False
    """Whether the decoder's levels are numbered in the order of use, coarse to fine."""

    def of_decoder(self, level: int, levels: int) -> int:
        """Return the number that the decoder's `level` has."""
        return levels - 1 - level if self.counts_upwards else level


def encoder_shape(published: Weights, names: Names, image_size: int) -> dict[str, Any]:
    """Return the fields of a `cnn` encoder that has these weights.

    Raises:
        UserError: there is no encoder of this layout.
    """
    channels = _weight(published, "encoder.conv_in").shape[0]
    levels = _count(published, names.down_block.format(level="{}", block=0))
    blocks = _count(published, names.down_block.format(level=0, block="{}"))
    if not levels:
        raise UserError(f"the checkpoint has no {names.down_block.format(level=0, block=0)}.conv1.weight")
    widths = [
        _weight(published, f"{names.down_block.format(level=level, block=blocks - 1)}.conv2").shape[0]
        for level in range(levels)
    ]
    return {
        "channels": channels,
        "channel_multipliers": _multipliers(widths, channels),
        "blocks_per_level": blocks,
        "attention_resolutions": [
            image_size >> level
            for level in range(levels)
            if _has_attention(published, names, names.down_attention.format(level=level, block=0))
        ],
        "middle_attention": _has_attention(published, names, f"encoder.{names.middle[1]}"),
        "latent_channels": _weight(published, "encoder.conv_out").shape[0],
    }


def decoder_shape(published: Weights, names: Names, image_size: int) -> dict[str, Any]:
    """Return the fields of a `cnn` decoder that has these weights.

    Raises:
        UserError: there is no decoder of this layout.
    """
    levels = _count(published, names.up_block.format(level="{}", block=0))
    blocks = _count(published, names.up_block.format(level=0, block="{}"))
    if not levels:
        raise UserError(f"the checkpoint has no {names.up_block.format(level=0, block=0)}.conv1.weight")
    numbers = [names.of_decoder(level, levels) for level in range(levels)]
    widths = [
        _weight(published, f"{names.up_block.format(level=number, block=blocks - 1)}.conv2").shape[0]
        for number in numbers
    ]
    # Only what the multipliers give is built, so that any common divisor of the widths is as good as the published one.
    channels = min(widths) if all(width % min(widths) == 0 for width in widths) else 32
    return {
        "channels": channels,
        "channel_multipliers": _multipliers(widths, channels),
        "blocks_per_level": blocks - 1,
        "attention_resolutions": [
            image_size >> level
            for level, number in enumerate(numbers)
            if _has_attention(published, names, names.up_attention.format(level=number, block=0))
        ],
        "middle_attention": _has_attention(published, names, f"decoder.{names.middle[1]}"),
        "latent_channels": _weight(published, "decoder.conv_in").shape[1],
    }


def whole_vqgan(
    published: Weights, names: Names, image_size: int, quantizer: Mapping[str, Any]
) -> VisualTokenizerConfig:
    """Return the tokenizer of `cnn` parts and this quantizer that has these weights."""
    size = whole_size(image_size, len(encoder_shape(published, names, image_size)["channel_multipliers"]))
    return VisualTokenizerConfig(
        image_size=size,
        encoder={"type": "cnn", **encoder_shape(published, names, size)},
        quantizer=dict(quantizer),
        decoder={"type": "cnn", **decoder_shape(published, names, size)},
    )


def whole_vqgan_links(config: VisualTokenizerConfig, names: Names) -> list[Link]:
    """Link `cnn` parts and the two 1 × 1 convolutions beside the quantizer."""
    links = encoder_links("encoder", EncoderConfig.family.config(config.encoder), config.image_size, names)
    links += decoder_links("decoder", DecoderConfig.family.config(config.decoder), config.image_size, names)
    return links + layer("to_codes", "quant_conv", ones=2) + layer("from_codes", "post_quant_conv", ones=2)


def vq_section(published: Weights, **fields: Any) -> dict[str, Any]:
    """Return a `vq` quantizer whose codebook is `quantize.embedding`, learned by gradient as published ones are.

    Raises:
        UserError: there is no such codebook.
    """
    size, channels = _weight(published, "quantize.embedding").shape
    return {"type": "vq", "codebook_size": size, "code_dim": channels, "update": {"type": "gradient"}, **fields}


CODEBOOK = Link("quantizer.codebook", ("quantize.embedding.weight",))


def group_norm(ours: str, theirs: str) -> list[Link]:
    """Link a plain normalisation."""
    return layer(ours, theirs)


def encoder_links(ours: str, shape: CNNShape, image_size: int, names: Names) -> list[Link]:
    """Link a `cnn` encoder called `ours` here."""
    links = layer(f"{ours}.stem", "encoder.conv_in")
    number = 0

    def add(found: list[Link]) -> None:
        nonlocal number
        links.extend(found)
        number += 1

    channels = shape.level_channels[0]
    for level, leaving in enumerate(shape.level_channels):
        for block in range(shape.blocks_per_level):
            at = names.down_block.format(level=level, block=block)
            add(_residual(f"{ours}.layers.{number}", at, channels != leaving, group_norm))
            channels = leaving
            if image_size >> level in shape.attention_resolutions:
                at = names.down_attention.format(level=level, block=block)
                norm = names.down_attention_norm.format(level=level, block=block)
                add(_attention(f"{ours}.layers.{number}", at, norm, names, group_norm))
        if level < len(shape.level_channels) - 1:
            add(layer(f"{ours}.layers.{number}.conv", names.downsample.format(level=level)))
    for found in _middle(f"{ours}.layers", number, "encoder", shape.middle_attention, names, group_norm):
        add(found)
    return links + group_norm(f"{ours}.norm", "encoder.norm_out") + layer(f"{ours}.head", "encoder.conv_out")


def decoder_links(
    ours: str, shape: CNNShape, image_size: int, names: Names, *, stem: str = "stem", norm: Norm = group_norm
) -> list[Link]:
    """Link a `cnn` decoder called `ours` here, or one with its layers and other norms."""
    links = layer(f"{ours}.{stem}", "decoder.conv_in")
    number = 0

    def add(found: list[Link]) -> None:
        nonlocal number
        links.extend(found)
        number += 1

    for found in _middle(f"{ours}.layers", 0, "decoder", shape.middle_attention, names, norm):
        add(found)
    levels = len(shape.level_channels)
    channels = shape.level_channels[-1]
    for level, leaving in reversed(list(enumerate(shape.level_channels))):
        theirs = names.of_decoder(level, levels)
        for block in range(shape.blocks_per_level + 1):
            at = names.up_block.format(level=theirs, block=block)
            add(_residual(f"{ours}.layers.{number}", at, channels != leaving, norm))
            channels = leaving
            if image_size >> level in shape.attention_resolutions:
                at = names.up_attention.format(level=theirs, block=block)
                at_norm = names.up_attention_norm.format(level=theirs, block=block)
                add(_attention(f"{ours}.layers.{number}", at, at_norm, names, norm))
        if level > 0:
            add(layer(f"{ours}.layers.{number}.conv", names.upsample.format(level=theirs)))
    return links + norm(f"{ours}.norm", "decoder.norm_out") + layer(f"{ours}.head", "decoder.conv_out")


def whole_size(image_size: int, levels: int) -> int:
    """Return the largest size up to `image_size` that `levels` levels can halve."""
    side = 2 ** (levels - 1)
    return max(1, image_size // side) * side


def _middle(ours: str, first: int, part: str, has_attention: bool, names: Names, norm: Norm) -> list[list[Link]]:
    before, attention, after = (f"{part}.{name}" for name in names.middle)
    found = [_residual(f"{ours}.{first}", before, False, norm)]
    if has_attention:
        at_norm = f"{part}.{names.middle_attention_norm}"
        found.append(_attention(f"{ours}.{first + 1}", attention, at_norm, names, norm))
    return [*found, _residual(f"{ours}.{first + len(found)}", after, False, norm)]


def _residual(ours: str, theirs: str, has_shortcut: bool, norm: Norm) -> list[Link]:
    links = norm(f"{ours}.norm1", f"{theirs}.norm1") + layer(f"{ours}.conv1", f"{theirs}.conv1")
    links += norm(f"{ours}.norm2", f"{theirs}.norm2") + layer(f"{ours}.conv2", f"{theirs}.conv2")
    return links + layer(f"{ours}.shortcut", f"{theirs}.nin_shortcut") if has_shortcut else links


def _attention(ours: str, theirs: str, their_norm: str, names: Names, norm: Norm) -> list[Link]:
    inputs = [f"{theirs}.{name}" for name in names.query_key_value]
    links = norm(f"{ours}.norm", their_norm)
    links += stacked_layer(f"{ours}.query_key_value", inputs, ones=names.attention_ones)
    return links + layer(f"{ours}.projection", f"{theirs}.{names.projection}", ones=names.attention_ones)


def _has_attention(published: Weights, names: Names, at: str) -> bool:
    return f"{at}.{names.query_key_value[0]}.weight" in published


def _weight(published: Weights, name: str) -> Tensor:
    if f"{name}.weight" not in published:
        raise UserError(f"the checkpoint has no {name}.weight")
    return published[f"{name}.weight"]


def _multipliers(widths: list[int], channels: int) -> list[int]:
    if any(width % channels for width in widths):
        raise UserError(f"the levels' channels {widths} are not multiples of {channels}")
    return [width // channels for width in widths]


def _count(published: Weights, block: str) -> int:
    return count_numbered(published, f"{block}.conv1.weight")
