"""The causal 3-D convolutional encoder of MAGVIT-2: clips and pictures with the same weights.

Paper: Language Model Beats Diffusion – Tokenizer is Key to Visual Generation (Yu et al., 2023), arXiv:2310.05737,
section 3.2: causal convolutions, strided convolutions for downsampling, and time downsampled in the later levels.

What differs: group normalisation takes the statistics of each frame, not of the clip, which would let every frame see
the later ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, causal_grid
from visual_tokenizer.layers.causal_convolution import CausalConv3d, CausalResidualBlock, FrameGroupNorm
from visual_tokenizer.layers.clip import as_clip, tokens_from_clip
from visual_tokenizer.layers.shape import CausalShape


@dataclass(kw_only=True)
class CausalCNNConfig(CausalShape, EncoderConfig):
    """Fields of the causal CNN encoder; the defaults are MAGVIT-2's: 8 × 8 pixels and 4 frames a token."""


class CausalCNN(Encoder):
    """1 + n·k frames become 1 + n frames of tokens; a picture is the first frame of a clip."""

    Config = CausalCNNConfig
    takes_video = True

    def __init__(self, config: CausalCNNConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.latent_channels
        padding = config.time_padding
        channels = config.level_channels[0]
        self.stem = CausalConv3d(3 * config.patch_area, channels, time_padding=padding)
        layers: list[nn.Module] = []
        for level, level_channels in enumerate(config.level_channels):
            for _ in range(config.blocks_per_level):
                block = CausalResidualBlock(channels, level_channels, groups=config.groups, time_padding=padding)
                layers.append(block)
                channels = level_channels
            if level < len(config.temporal_downsampling):
                stride = (2 if config.temporal_downsampling[level] else 1, 2, 2)
                layers.append(CausalConv3d(channels, channels, stride=stride, time_padding=padding))
        for _ in range(config.blocks_per_level):
            layers.append(CausalResidualBlock(channels, channels, groups=config.groups, time_padding=padding))
        self.layers = nn.Sequential(*layers)
        self.norm = FrameGroupNorm(config.groups, channels)
        self.head = nn.Conv3d(channels, config.latent_channels, 1)

    def token_grid(self, height: int, width: int, frames: int = 0) -> tuple[int, ...]:
        return causal_grid(height, width, frames, self.config.strides)

    def forward(self, pixels: Tensor) -> Tensor:
        height, width = self.config.patch_size
        patches = rearrange(as_clip(pixels), "b c t (h p) (w q) -> b (c p q) t h w", p=height, q=width)
        return tokens_from_clip(self.head(F.silu(self.norm(self.layers(self.stem(patches))))))
