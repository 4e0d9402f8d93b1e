"""What every encoder has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import PartConfig


class ResolutionError(UserError):
    """A picture size that this architecture can't take."""


@dataclass(kw_only=True)
class EncoderConfig(PartConfig, package="visual_tokenizer.encoders"):
    """Fields that every encoder has (none)."""


class Encoder(nn.Module):
    """Turns pixels into a sequence of latents. A subclass sets `width`, the channels of a latent.

    One that sets `takes_video` takes clips as well as pictures: its `token_grid` has a third argument and its `forward`
    gets (B, 3, T, H, W) or (B, 3, H, W).
    """

    Config: ClassVar[type[EncoderConfig]]
    width: int
    latents_are_codes: ClassVar[bool] = False
    """Whether its latents are quantized as they are, without a linear map to the code dimension."""

    takes_video: ClassVar[bool] = False
    """Whether it takes clips as well as pictures."""

    has_variable_length: ClassVar[bool] = False
    """Whether a picture has as many latents as it needs: `token_grid` is then (N,), the most there can be, and
    `forward` gives a `Selection`."""

    def __init__(self, config: EncoderConfig, *, image_size: int) -> None:
        super().__init__()
        self.config: Any = config
        self.image_size = image_size

    def read_weights(self) -> None:
        """Take the pretrained weights that training begins with, where the config names some."""

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of the tokens of one picture of that size in pixels.

        An encoder that takes clips has `frames: int = 0` as well: 0 is a picture, whose grid is (h, w); the grid of a
        clip is (t, h, w), also where t is 1.

        Raises:
            ResolutionError: the architecture can't take that size; the message says which it takes.
        """
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode: (B, 3, H, W) in [-1, 1] → (B, N, width), N = product of the token grid.

        One with `has_variable_length` is typed as giving anything, and gives a `Selection`.
        """
        raise NotImplementedError


PART = Encoder
