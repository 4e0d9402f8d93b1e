"""The convolutional encoder of Open-MAGVIT2 for pictures.

Paper: Open-MAGVIT2: An Open-Source Project Toward Democratizing Auto-regressive Visual Generation (Luo et al., 2024),
arXiv:2409.04410, section 3.1: VQGAN's without attention, deeper, its convolutions in residual blocks without bias.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, picture_grid
from visual_tokenizer.layers.biasless import BiaslessResidualBlock
from visual_tokenizer.layers.convolution import group_norm, tokens_from_map
from visual_tokenizer.layers.shape import OpenMAGVIT2Shape


@dataclass(kw_only=True)
class OpenMAGVIT2Config(OpenMAGVIT2Shape, EncoderConfig):
    """Fields of the Open-MAGVIT2 encoder; the defaults are those of 16 × 16 pixels a token and 2^18 codes."""


class OpenMAGVIT2(Encoder):
    """Residual blocks, halving by strided convolutions between levels; latents are quantized as they are."""

    Config = OpenMAGVIT2Config
    latents_are_codes = True

    def __init__(self, config: OpenMAGVIT2Config, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.latent_channels
        channels = config.level_channels[0]
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        for level, leaving in enumerate(config.level_channels):
            for _ in range(config.blocks_per_level):
                layers.append(BiaslessResidualBlock(channels, leaving, groups=config.groups))
                channels = leaving
            if level < len(config.level_channels) - 1:
                layers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
        layers += [
            BiaslessResidualBlock(channels, channels, groups=config.groups) for _ in range(config.blocks_per_level)
        ]
        self.layers = nn.Sequential(*layers)
        self.norm = group_norm(channels, config.groups)
        self.head = nn.Conv2d(channels, config.latent_channels, 1)

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        side = self.config.level_side
        return picture_grid(height, width, (side, side))

    def forward(self, pixels: Tensor) -> Tensor:
        return tokens_from_map(self.head(F.silu(self.norm(self.layers(self.stem(pixels))))))
