"""A decoder that learns to draw from the codes and does not shape them.

A tokenizer that is trained on features alone, as BEiT v2's (Peng et al., 2022), arXiv:2208.06366, never draws. What its
codes keep of a picture can be seen all the same: no gradient passes from the pixels to codes or encoder.

Paper: Understanding intermediate layers using linear classifier probes (Alain & Bengio, 2016), arXiv:1610.01644.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from visual_tokenizer.decoders.base import Decoder, DecoderConfig, OuterDecoder


@dataclass(kw_only=True)
class ProbeConfig(DecoderConfig):
    """Fields of the probe."""

    code_channels: Annotated[int, Ge(1)] = 32
    """Channels of a code, the quantizer's code_dim."""

    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig.family.config({"type": "cnn"}))
    """What draws, after a linear map to its width, which is the probe's own."""


class Probe(OuterDecoder):
    """`decoder(W sg(z) + b)`."""

    Config = ProbeConfig
    latents_are_codes = True
    inner_name = "decoder"

    def __init__(self, config: ProbeConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.code_channels
        self.decoder: Decoder = DecoderConfig.family.build(config.decoder, image_size=image_size)
        self.takes_variable_length = self.decoder.takes_variable_length
        self.projection = nn.Linear(config.code_channels, self.decoder.width)

    def forward(self, latents: Tensor, grid: tuple[int, ...], *present: Tensor | None) -> Tensor:
        return self.decoder(self.projection(latents.detach()), grid, *present)
