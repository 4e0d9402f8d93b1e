"""The transformer encoder of ViT-VQGAN.

Paper: Vector-quantized Image Modeling with Improved VQGAN (Yu et al., 2022), arXiv:2110.04627, section 3.1: linear
patch embedding, transformer blocks, and on their output a two-layer feed-forward with tanh in the middle; nothing after
it. The paper's linear map to the low-dimensional look-up space is `VisualTokenizer.to_codes`. It gives no width for the
tanh layer (here four times `width`, as inside the blocks) and no positions (here sines, which fit any grid).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, picture_grid
from visual_tokenizer.layers.convolution import fold_patches, tokens_from_map
from visual_tokenizer.layers.shape import ViTShape
from visual_tokenizer.layers.transformer import Transformer, sinusoidal_positions


@dataclass(kw_only=True)
class ViTConfig(ViTShape, EncoderConfig):
    """Fields of the ViT encoder; the defaults are ViT-VQGAN-Small's."""


class ViT(Encoder):
    """Patches, positions, transformer, tanh feed-forward."""

    Config = ViTConfig

    def __init__(self, config: ViTConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.embedding = nn.Linear(config.patch_channels, config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.head = nn.Sequential(
            nn.Linear(config.width, 4 * config.width), nn.Tanh(), nn.Linear(4 * config.width, config.width)
        )

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        return picture_grid(height, width, self.config.patch_size)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = fold_patches(pixels, self.config.patch_size)
        positions = sinusoidal_positions(patches.shape[2], patches.shape[3], self.width, pixels.device)
        embedded = self.embedding(tokens_from_map(patches))
        return self.head(self.transformer(embedded + positions.to(embedded.dtype)))
