"""The decoder of the Cosmos tokenizer: factorised causal convolutions and attention, then the inverse wavelets.

Paper: Cosmos World Foundation Model Platform for Physical AI (NVIDIA, 2025), arXiv:2501.03575, section 5.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.causal_convolution import FrameGroupNorm
from visual_tokenizer.layers.clip import as_asked, clip_from_tokens
from visual_tokenizer.layers.factorized import (
    CosmosShape,
    FactorizedAttention,
    FactorizedBlock,
    HybridUpsample,
    factorized_convolution,
)
from visual_tokenizer.layers.wavelet import causal_pixels


@dataclass(kw_only=True)
class CosmosConfig(CosmosShape, DecoderConfig):
    """Fields of the Cosmos decoder; the defaults are those of the discrete one of 8 frames and 16 × 16 pixels."""


class Cosmos(Decoder):
    """The encoder's mirror, with one residual block more a level."""

    Config = CosmosConfig
    takes_video = True
    last_weight = "head.1.weight"

    def __init__(self, config: CosmosConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.latent_channels
        resolution = image_size // config.strides[1]
        channels = config.level_channels[-1]
        self.stem = factorized_convolution(config.latent_channels, channels)
        layers: list[nn.Module] = [
            FactorizedBlock(channels, channels),
            FactorizedAttention(channels),
            FactorizedBlock(channels, channels),
        ]
        for level, level_channels in reversed(list(enumerate(config.level_channels))):
            for _ in range(config.blocks_per_level + 1):
                layers.append(FactorizedBlock(channels, level_channels))
                channels = level_channels
                if resolution in config.attention_resolutions:
                    layers.append(FactorizedAttention(channels))
            if level > 0:
                in_space, in_time = config.spatial_downsampling[level - 1], config.temporal_downsampling[level - 1]
                if in_space or in_time:
                    layers.append(HybridUpsample(channels, in_space=in_space, in_time=in_time))
                resolution *= 2 if in_space else 1
        self.layers = nn.Sequential(*layers)
        self.norm = FrameGroupNorm(1, channels)
        self.head = factorized_convolution(channels, 3 * 8**config.wavelet_levels)

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        hidden = self.layers(self.stem(clip_from_tokens(latents, grid)))
        bands = self.head(F.silu(self.norm(hidden)))
        return as_asked(causal_pixels(bands, self.config.wavelet_levels), grid)
