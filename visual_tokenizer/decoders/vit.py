"""The transformer decoder of ViT-VQGAN.

Paper: Vector-quantized Image Modeling with Improved VQGAN (Yu et al., 2022), arXiv:2110.04627, section 3.1: the
encoder's inverse; on the output of the transformer blocks a two-layer feed-forward with tanh in the middle, whose
second layer gives the pixels of a patch; no activation after it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.convolution import map_from_tokens, unfold_patches
from visual_tokenizer.layers.shape import ViTShape
from visual_tokenizer.layers.transformer import Transformer, sinusoidal_positions


@dataclass(kw_only=True)
class ViTConfig(ViTShape, DecoderConfig):
    """Fields of the ViT decoder; the defaults are ViT-VQGAN-Small's."""


class ViT(Decoder):
    """Positions, transformer, tanh feed-forward, patches."""

    Config = ViTConfig
    last_weight = "head.2.weight"

    def __init__(self, config: ViTConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.transformer = Transformer(config.width, config.depth, config.heads)
        last = nn.Linear(4 * config.width, config.patch_channels)
        self.head = nn.Sequential(nn.Linear(config.width, 4 * config.width), nn.Tanh(), last)

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        positions = sinusoidal_positions(grid[0], grid[1], self.width, latents.device)
        patches = self.head(self.transformer(latents + positions.to(latents.dtype)))
        return unfold_patches(map_from_tokens(patches, grid), self.config.patch_size)
