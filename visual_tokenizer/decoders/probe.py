"""A decoder that learns to draw from the codes and does not shape them.

A tokenizer that is trained on features alone, as BEiT v2's (Peng et al., 2022), arXiv:2208.06366, never draws. What its
codes keep of a picture can be seen all the same: no gradient passes from the pixels to codes or encoder.

Paper: Understanding intermediate layers using linear classifier probes (Alain & Bengio, 2016), arXiv:1610.01644.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class ProbeConfig(DecoderConfig):
    """Fields of the probe."""

    code_channels: int = 32
    """Channels of a code, the quantizer's code_dim; 1 or more."""

    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig.family.config({"type": "cnn"}))
    """What draws, after a linear map to its width, which is the probe's own."""

    def __post_init__(self) -> None:
        if self.code_channels < 1:
            raise UserError(f"code_channels must be 1 or more, got {self.code_channels}")


class Probe(Decoder):
    """`decoder(W sg(z) + b)`."""

    Config = ProbeConfig
    latents_are_codes = True

    def __init__(self, config: ProbeConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.code_channels
        self.decoder: Decoder = DecoderConfig.family.build(config.decoder, image_size=image_size)
        self.takes_variable_length = self.decoder.takes_variable_length
        self.projection = nn.Linear(config.code_channels, self.decoder.width)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.last_layer

    def forward(self, latents: Tensor, grid: tuple[int, ...], *present: Tensor | None) -> Tensor:
        return self.decoder(self.projection(latents.detach()), grid, *present)

    def pixels(self, output: Tensor) -> Tensor:
        return self.decoder.pixels(output)
