"""What every encoder has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from visual_tokenizer.registry import PartConfig


class ResolutionError(ValueError):
    """A picture size that this architecture can't take."""


@dataclass(kw_only=True)
class EncoderConfig(PartConfig, package="visual_tokenizer.encoders"):
    """Fields that every encoder has (none)."""


class Encoder(nn.Module):
    """Turns pixels into a sequence of latents. A subclass sets `width`, the channels of a latent."""

    Config: ClassVar[type[EncoderConfig]]
    width: int
    latents_are_codes: ClassVar[bool] = False
    """Whether its latents are quantized as they are, without a linear map to the code dimension."""

    def __init__(self, config: EncoderConfig, *, image_size: int) -> None:
        super().__init__()
        self.config: Any = config
        self.image_size = image_size

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of the tokens of one picture of that size in pixels.

        Raises:
            ResolutionError: the architecture can't take that size; the message says which it takes.
        """
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode: (B, 3, H, W) in [-1, 1] → (B, N, width), N = product of the token grid."""
        raise NotImplementedError


PART = Encoder
