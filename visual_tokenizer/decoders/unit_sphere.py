"""Codes are put on the unit sphere before another decoder gets them.

Paper: Janus: Decoupling Visual Encoding for Unified Multimodal Understanding and Generation (Wu et al., 2024),
arXiv:2410.13848, section 3.1, in the form that transformers gives its tokenizer: the nearest code is searched among
vectors of any length, and only what is decoded is normalised. The original normalises on both sides, which is `vq` with
`normalize` and needs no such part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import Decoder, DecoderConfig, OuterDecoder


@dataclass(kw_only=True)
class UnitSphereConfig(DecoderConfig):
    """Fields of the decoder of normalised codes."""

    code_channels: Annotated[int, Ge(1)] = 8
    """Channels of a code."""

    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig.family.config({"type": "cnn"}))
    """What decodes them, after a linear map to its width."""


class UnitSphere(OuterDecoder):
    """`decoder(W z / ‖z‖ + b)`."""

    Config = UnitSphereConfig
    latents_are_codes = True
    inner_name = "decoder"

    def __init__(self, config: UnitSphereConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.code_channels
        self.decoder: Decoder = DecoderConfig.family.build(config.decoder, image_size=image_size)
        self.projection = nn.Linear(config.code_channels, self.decoder.width)

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        return self.decoder(self.projection(F.normalize(latents, dim=-1)), grid)
