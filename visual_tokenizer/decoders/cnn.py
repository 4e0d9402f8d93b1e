"""The convolutional decoder of VQGAN.

Paper: Taming Transformers for High-Resolution Image Synthesis (Esser et al., 2021), arXiv:2012.09841, appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.convolution import (
    ResidualBlock,
    SpatialAttention,
    Upsample,
    group_norm,
    map_from_tokens,
    unfold_patches,
)
from visual_tokenizer.layers.shape import CNNShape


@dataclass(kw_only=True)
class CNNConfig(CNNShape, DecoderConfig):
    """Fields of the CNN decoder; the defaults are VQGAN's at an upsampling of 16."""


class CNN(Decoder):
    """The encoder's mirror, with one residual block more a level."""

    Config = CNNConfig

    def __init__(self, config: CNNConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.latent_channels
        groups = config.groups
        channels = config.level_channels[-1]
        resolution = image_size // max(config.downsampling)
        self.stem = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        layers: list[nn.Module] = [ResidualBlock(channels, channels, groups=groups, dropout=config.dropout)]
        if config.middle_attention:
            layers.append(SpatialAttention(channels, groups=groups))
        layers.append(ResidualBlock(channels, channels, groups=groups, dropout=config.dropout))
        for level, level_channels in reversed(list(enumerate(config.level_channels))):
            for _ in range(config.blocks_per_level + 1):
                layers.append(ResidualBlock(channels, level_channels, groups=groups, dropout=config.dropout))
                channels = level_channels
                if resolution in config.attention_resolutions:
                    layers.append(SpatialAttention(channels, groups=groups))
            if level > 0:
                layers.append(Upsample(channels))
                resolution *= 2
        self.layers = nn.Sequential(*layers)
        self.norm = group_norm(channels, groups)
        self.head = nn.Conv2d(channels, 3 * config.patch_area, 3, padding=1)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.get_parameter("head.weight")

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        hidden = self.layers(self.stem(map_from_tokens(latents, grid)))
        return unfold_patches(self.head(F.silu(self.norm(hidden))), self.config.patch_size)
