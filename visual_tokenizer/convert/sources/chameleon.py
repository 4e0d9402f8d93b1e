"""Chameleon's image tokenizer: transformers' `ChameleonVQVAE`, a whole Chameleon, or the original `vqgan.ckpt`.

Paper: Chameleon: Mixed-Modal Early-Fusion Foundation Models (Chameleon Team, 2024), arXiv:2405.09818, section 2.1.
transformers' class has no decoder, only its first 1 × 1 convolution. With the original checkpoint as `decoder` (or
alone, it holds everything) the tokenizer decodes; without, its decoder is `absent` and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.convert.links import Link, Weights, layer
from visual_tokenizer.convert.sources.base import PublishedSource, PublishedSourceConfig, require_parts
from visual_tokenizer.convert.vqgan_layout import (
    CODEBOOK,
    Names,
    encoder_links,
    encoder_shape,
    vq_section,
    whole_size,
    whole_vqgan,
    whole_vqgan_links,
)
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.errors import UserError

NAMES = Names()

_OF_DECODER = ("decoder.", "post_quant_conv.")

_CODE_TOLERANCE = 1e-2
"""How far two copies of one codebook may lie apart, relative to their size: one may be bfloat16."""


@dataclass(kw_only=True)
class ChameleonConfig(PublishedSourceConfig):
    """Fields of the source of Chameleons."""


class Chameleon(PublishedSource):
    """VQGAN's layout, the decoder optional."""

    Config = ChameleonConfig
    anchor = "encoder.conv_in.weight"
    beside = ("loss.",)
    published_size = 512
    resample: ClassVar[Image.Resampling] = Image.Resampling.LANCZOS
    about = "Chameleon (Chameleon Team, 2024), https://github.com/facebookresearch/chameleon"

    def size_in(self, settings: Mapping[str, Any]) -> int | None:
        return settings.get("vq_config", settings).get("resolution")

    def join(self, own: dict[str, Tensor], decoder: Weights) -> dict[str, Tensor]:
        heads = [name.removesuffix("decoder.conv_in.weight") for name in decoder if "decoder.conv_in.weight" in name]
        if not heads:
            raise UserError("the decoder's weights have no decoder.conv_in.weight")
        theirs = {name.removeprefix(heads[0]): decoder[name] for name in decoder if name.startswith(heads[0])}
        codebook = theirs.get("quantize.embedding.weight")
        if codebook is not None and not _same(codebook, own["quantize.embedding.weight"]):
            raise UserError(
                "the decoder belongs to another codebook than the encoder: their quantize.embedding.weight differ"
            )
        return own | {name: tensor for name, tensor in theirs.items() if name.startswith(_OF_DECODER)}

    def describe(self, published: Weights, image_size: int, settings: Mapping[str, Any]) -> VisualTokenizerConfig:
        quantizer = vq_section(published, loss_weighting="legacy")
        if "decoder.conv_in.weight" in published:
            return whole_vqgan(published, NAMES, image_size, quantizer)
        size = whole_size(image_size, len(encoder_shape(published, NAMES, image_size)["channel_multipliers"]))
        encoder = encoder_shape(published, NAMES, size)
        return VisualTokenizerConfig(
            image_size=size,
            encoder={"type": "cnn", **encoder},
            quantizer=quantizer,
            decoder={"type": "absent", "latent_channels": encoder["latent_channels"]},
        )

    def links(self, config: VisualTokenizerConfig) -> list[Link]:
        require_parts(config, "chameleon", encoder=("cnn",), quantizer=("vq",), decoder=("cnn", "absent"))
        if config.decoder["type"] == "cnn":
            return [*whole_vqgan_links(config, NAMES), CODEBOOK]
        links = encoder_links("encoder", EncoderConfig.family.config(config.encoder), config.image_size, NAMES)
        links += layer("to_codes", "quant_conv", ones=2) + layer("from_codes", "post_quant_conv", ones=2)
        return [*links, CODEBOOK]


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    apart = (one.float() - other.float()).abs().max()
    return bool(apart <= _CODE_TOLERANCE * torch.maximum(one.float().abs().max(), other.float().abs().max()))
