"""Linear patch projection: each latent becomes one square of pixels.

Paper: An Image is Worth 32 Tokens for Reconstruction and Generation (Yu et al., 2024), arXiv:2406.07550: the inverse
of the patch embedding (arXiv:2010.11929, eq. 1).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.convolution import map_from_tokens


@dataclass(kw_only=True)
class PatchConfig(DecoderConfig):
    """Fields of the patch projection."""

    patch_size: int = 16
    """Side of a patch in pixels; 1 or more."""

    width: int = 512
    """Channels of a latent; 1 or more."""

    def __post_init__(self) -> None:
        for name in ("patch_size", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)}")


class Patch(Decoder):
    """One linear map a latent."""

    Config = PatchConfig

    def __init__(self, config: PatchConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.projection = nn.Linear(config.width, 3 * config.patch_size**2)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.get_parameter("projection.weight")

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        return F.pixel_shuffle(map_from_tokens(self.projection(latents), grid), self.config.patch_size)
