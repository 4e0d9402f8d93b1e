"""What every decoder has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class DecoderConfig(PartConfig, package="visual_tokenizer.decoders"):
    """Fields that every decoder has (none)."""


class Decoder(nn.Module):
    """Turns a sequence of latents into pixels. A subclass sets `width`, the channels of a latent."""

    Config: ClassVar[type[DecoderConfig]]
    width: int
    latents_are_codes: ClassVar[bool] = False
    """Whether it takes codes as they are, without a linear map from the code dimension."""

    def __init__(self, config: DecoderConfig, *, image_size: int) -> None:
        super().__init__()
        self.config: Any = config
        self.image_size = image_size

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Decode: (B, N, width), N = product of `grid` → (B, 3, H, W), about [-1, 1]."""
        raise NotImplementedError


PART = Decoder
