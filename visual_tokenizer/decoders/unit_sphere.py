"""Codes are put on the unit sphere before another decoder gets them.

Paper: Janus: Decoupling Visual Encoding for Unified Multimodal Understanding and Generation (Wu et al., 2024),
arXiv:2410.13848, section 3.1, in the form that transformers gives its tokenizer: the nearest code is searched among
vectors of any length, and only what is decoded is normalised. The original normalises on both sides, which is `vq` with
`normalize` and needs no such part.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class UnitSphereConfig(DecoderConfig):
    """Fields of the decoder of normalised codes."""

    code_channels: int = 8
    """Channels of a code; 1 or more."""

    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig.family.config({"type": "cnn"}))
    """What decodes them, after a linear map to its width."""

    def __post_init__(self) -> None:
        if self.code_channels < 1:
            raise UserError(f"code_channels must be 1 or more, got {self.code_channels}")


class UnitSphere(Decoder):
    """`decoder(W z / ‖z‖ + b)`."""

    Config = UnitSphereConfig
    latents_are_codes = True

    def __init__(self, config: UnitSphereConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.code_channels
        self.decoder: Decoder = DecoderConfig.family.build(config.decoder, image_size=image_size)
        self.projection = nn.Linear(config.code_channels, self.decoder.width)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.last_layer

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        return self.decoder(self.projection(F.normalize(latents, dim=-1)), grid)

    def pixels(self, output: Tensor) -> Tensor:
        return self.decoder.pixels(output)
