"""Linear patch embedding: each square of pixels becomes one latent.

Paper: An Image is Worth 16x16 Words (Dosovitskiy et al., 2021), arXiv:2010.11929, eq. 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, picture_grid
from visual_tokenizer.layers.convolution import tokens_from_map


@dataclass(kw_only=True)
class PatchConfig(EncoderConfig):
    """Fields of the patch embedding."""

    patch_size: Annotated[int, Ge(1)] = 16
    """Side of a patch in pixels."""

    width: Annotated[int, Ge(1)] = 512
    """Channels of a latent."""


class Patch(Encoder):
    """One linear map a patch."""

    Config = PatchConfig

    def __init__(self, config: PatchConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.embedding = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        side = self.config.patch_size
        return picture_grid(height, width, (side, side))

    def forward(self, pixels: Tensor) -> Tensor:
        return tokens_from_map(self.embedding(pixels))
