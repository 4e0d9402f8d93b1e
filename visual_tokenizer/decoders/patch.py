"""Linear patch projection: each latent becomes one square of pixels.

Paper: An Image is Worth 32 Tokens for Reconstruction and Generation (Yu et al., 2024), arXiv:2406.07550: the inverse
of the patch embedding (arXiv:2010.11929, eq. 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.convolution import map_from_tokens


@dataclass(kw_only=True)
class PatchConfig(DecoderConfig):
    """Fields of the patch projection."""

    patch_size: Annotated[int, Ge(1)] = 16
    """Side of a patch in pixels."""

    width: Annotated[int, Ge(1)] = 512
    """Channels of a latent."""


class Patch(Decoder):
    """One linear map a latent."""

    Config = PatchConfig
    last_weight = "projection.weight"

    def __init__(self, config: PatchConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.projection = nn.Linear(config.width, 3 * config.patch_size**2)

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        return F.pixel_shuffle(map_from_tokens(self.projection(latents), grid), self.config.patch_size)
