"""The encoder of the Cosmos tokenizer: a wavelet transform, then factorised causal convolutions and attention.

Paper: Cosmos World Foundation Model Platform for Physical AI (NVIDIA, 2025), arXiv:2501.03575, section 5.2. The
discrete tokenizers quantize by FSQ with levels [8, 8, 8, 5, 5, 5].
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, causal_grid
from visual_tokenizer.layers.causal_convolution import FrameGroupNorm
from visual_tokenizer.layers.clip import as_clip, tokens_from_clip
from visual_tokenizer.layers.factorized import (
    CosmosShape,
    FactorizedAttention,
    FactorizedBlock,
    HybridDownsample,
    factorized_convolution,
)
from visual_tokenizer.layers.wavelet import causal_patches


@dataclass(kw_only=True)
class CosmosConfig(CosmosShape, EncoderConfig):
    """Fields of the Cosmos encoder; the defaults are those of the discrete one of 8 frames and 16 × 16 pixels."""


class Cosmos(Encoder):
    """1 + n·k frames become 1 + n frames of tokens; a picture is the first frame of a clip."""

    Config = CosmosConfig
    takes_video = True

    def __init__(self, config: CosmosConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.latent_channels
        resolution = image_size // 2**config.wavelet_levels
        channels = config.channels
        self.stem = factorized_convolution(3 * 8**config.wavelet_levels, channels)
        layers: list[nn.Module] = []
        for level, level_channels in enumerate(config.level_channels):
            for _ in range(config.blocks_per_level):
                layers.append(FactorizedBlock(channels, level_channels))
                channels = level_channels
                if resolution in config.attention_resolutions:
                    layers.append(FactorizedAttention(channels))
            if level < len(config.spatial_downsampling):
                in_space, in_time = config.spatial_downsampling[level], config.temporal_downsampling[level]
                if in_space or in_time:
                    layers.append(HybridDownsample(channels, in_space=in_space, in_time=in_time))
                resolution //= 2 if in_space else 1
        layers += [
            FactorizedBlock(channels, channels),
            FactorizedAttention(channels),
            FactorizedBlock(channels, channels),
        ]
        self.layers = nn.Sequential(*layers)
        self.norm = FrameGroupNorm(1, channels)
        self.head = factorized_convolution(channels, config.latent_channels)

    def token_grid(self, height: int, width: int, frames: int = 0) -> tuple[int, ...]:
        return causal_grid(height, width, frames, self.config.strides)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.layers(self.stem(causal_patches(as_clip(pixels), self.config.wavelet_levels)))
        return tokens_from_clip(self.head(F.silu(self.norm(hidden))))
