"""The convolutional encoder of VQGAN.

Paper: Taming Transformers for High-Resolution Image Synthesis (Esser et al., 2021), arXiv:2012.09841, appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, picture_grid
from visual_tokenizer.layers.convolution import (
    Downsample,
    ResidualBlock,
    SpatialAttention,
    fold_patches,
    group_norm,
    middle_layers,
    tokens_from_map,
)
from visual_tokenizer.layers.shape import CNNShape


@dataclass(kw_only=True)
class CNNConfig(CNNShape, EncoderConfig):
    """Fields of the CNN encoder; the defaults are VQGAN's at a downsampling of 16."""


class CNN(Encoder):
    """Residual blocks, halving between levels, attention where asked and in the middle."""

    Config = CNNConfig

    def __init__(self, config: CNNConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.latent_channels
        block = partial(ResidualBlock, groups=config.groups, dropout=config.dropout)
        attention = partial(SpatialAttention, groups=config.groups)
        channels = config.level_channels[0]
        resolution = image_size // max(config.patch_size)
        self.stem = nn.Conv2d(3 * config.patch_area, channels, 3, padding=1)
        layers: list[nn.Module] = []
        for level, level_channels in enumerate(config.level_channels):
            for _ in range(config.blocks_per_level):
                layers.append(block(channels, level_channels))
                channels = level_channels
                if resolution in config.attention_resolutions:
                    layers.append(attention(channels))
            if level < len(config.level_channels) - 1:
                layers.append(Downsample(channels))
                resolution //= 2
        self.layers = nn.Sequential(*layers, *middle_layers(config, block, attention))
        self.norm = group_norm(channels, config.groups)
        self.head = nn.Conv2d(channels, config.latent_channels, 3, padding=1)

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        return picture_grid(height, width, self.config.sides)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.stem(fold_patches(pixels, self.config.patch_size))
        return tokens_from_map(self.head(F.silu(self.norm(self.layers(hidden)))))
