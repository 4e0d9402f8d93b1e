"""Linear patch embedding: each square of pixels becomes one latent.

Paper: An Image is Worth 16x16 Words (Dosovitskiy et al., 2021), arXiv:2010.11929, eq. 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, ResolutionError
from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.convolution import tokens_from_map


@dataclass(kw_only=True)
class PatchConfig(EncoderConfig):
    """Fields of the patch embedding."""

    patch_size: int = 16
    """Side of a patch in pixels; 1 or more."""

    width: int = 512
    """Channels of a latent; 1 or more."""

    def __post_init__(self) -> None:
        for name in ("patch_size", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)}")


class Patch(Encoder):
    """One linear map a patch."""

    Config = PatchConfig

    def __init__(self, config: PatchConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.embedding = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        side = self.config.patch_size
        if height < side or width < side or height % side or width % side:
            raise ResolutionError(
                f"height and width must be multiples of {side} (the patch size), got {height} × {width}"
            )
        return height // side, width // side

    def forward(self, pixels: Tensor) -> Tensor:
        return tokens_from_map(self.embedding(pixels))
