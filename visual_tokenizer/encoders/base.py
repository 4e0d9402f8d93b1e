"""What every encoder has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.shape import QueryShape
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

    def require_nominal_size(self, height: int, width: int) -> None:
        """Raise unless pictures of that size are those that the position embeddings were made for.

        Raises:
            ResolutionError: another size.
        """
        side = self.image_size
        if (height, width) != (side, side):
            raise ResolutionError(
                f"this encoder takes {side} × {side} pixels only (its position embeddings are for that size), "
                f"got {height} × {width}"
            )

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


def picture_grid(height: int, width: int, strides: Sequence[int]) -> tuple[int, int]:
    """Return the token grid of a network that divides height and width by `strides`.

    Raises:
        ResolutionError: they can't be divided by them.
    """
    down, across = strides
    if height < down or width < across or height % down or width % across:
        raise ResolutionError(
            f"height must be a multiple of {down} and width of {across} (the downsampling), got {height} × {width}"
        )
    return height // down, width // across


def causal_grid(height: int, width: int, frames: int, strides: Sequence[int]) -> tuple[int, ...]:
    """Return the grid of a clip, or of a picture (`frames` 0), whose first frame stands alone.

    Args:
        height: in pixels.
        width: in pixels.
        frames: 1 + n · the first of `strides`, or 0.
        strides: frames, height and width that become one token.

    Raises:
        ResolutionError: sizes that can't be divided so.
    """
    stride = strides[0]
    grid = picture_grid(height, width, strides[1:])
    if frames and (frames - 1) % stride:
        raise ResolutionError(
            f"frames must be 1 more than a multiple of {stride} (1, {1 + stride}, {1 + 2 * stride}, …), got {frames}"
        )
    return (1 + (frames - 1) // stride, *grid) if frames else grid


def even_grid(height: int, width: int, frames: int, strides: Sequence[int]) -> tuple[int, ...]:
    """Return the grid of a clip, all of whose frames go together by the first of `strides`; see `causal_grid`.

    Raises:
        ResolutionError: sizes that can't be divided so, or a picture where several frames become one.
    """
    stride = strides[0]
    grid = picture_grid(height, width, strides[1:])
    if (frames or stride > 1) and (frames < stride or frames % stride):
        raise ResolutionError(
            f"frames must be a multiple of {stride} (this architecture has no first frame of its own), "
            f"got {frames or 'a picture'}"
        )
    return (frames // stride, *grid) if frames else grid


def rows_and_columns(patches: Encoder, image_size: int) -> tuple[int, int]:
    """Return the token grid of an encoder that another one is built on.

    Raises:
        UserError: its tokens do not lie in rows and columns.
    """
    grid = patches.token_grid(image_size, image_size)
    if len(grid) != 2:
        raise UserError(f"patches must be an encoder of rows and columns, got a token grid of {grid}")
    return grid[0], grid[1]


@dataclass(kw_only=True)
class QueryEncoderConfig(QueryShape, EncoderConfig):
    """Fields of encoders of one-dimensional tokens."""

    patches: EncoderConfig = field(default_factory=lambda: EncoderConfig.family.config({"type": "patch"}))
    """The encoder whose latents are the features that are read."""


class QueryEncoder(Encoder):
    """Learned queries read what another encoder made of a picture, of the nominal size only; a subclass says how."""

    def __init__(self, config: QueryEncoderConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.patches: Encoder = EncoderConfig.family.build(config.patches, image_size=image_size)
        self.patch_grid = self.patches.token_grid(image_size, image_size)

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        self.require_nominal_size(height, width)
        return (self.config.num_latents,)


PART = Encoder
