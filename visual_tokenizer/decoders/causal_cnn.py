"""The causal 3-D convolutional decoder of MAGVIT-2.

Paper: Language Model Beats Diffusion – Tokenizer is Key to Visual Generation (Yu et al., 2023), arXiv:2310.05737,
section 3.2: upsampling by depth to space (and time), and before each level's residual blocks a group normalisation
that the quantized latents steer.

What differs: the statistics that normalise, and those of the latents that steer, are of one frame and not of the clip,
so that a frame can be decoded before the next ones are known.
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.causal_convolution import (
    AdaptiveFrameNorm,
    CausalConv3d,
    CausalResidualBlock,
    DepthToSpaceTime,
    FrameGroupNorm,
)
from visual_tokenizer.layers.clip import as_asked, clip_from_tokens
from visual_tokenizer.layers.shape import CausalShape


@dataclass(kw_only=True)
class CausalCNNConfig(CausalShape, DecoderConfig):
    """Fields of the causal CNN decoder; the defaults are MAGVIT-2's: 8 × 8 pixels and 4 frames a token."""


class CausalCNN(Decoder):
    """1 + n frames of latents become 1 + n·k frames of pixels."""

    Config = CausalCNNConfig
    takes_video = True
    last_weight = "head.weight"

    def __init__(self, config: CausalCNNConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.latent_channels
        padding, groups = config.time_padding, config.groups
        channels = config.level_channels[-1]
        self.stem = CausalConv3d(config.latent_channels, channels, time_padding=padding)
        middle = [
            CausalResidualBlock(channels, channels, groups=groups, time_padding=padding)
            for _ in range(config.blocks_per_level)
        ]
        self.middle = nn.Sequential(*middle)
        self.norms = nn.ModuleList()
        self.levels = nn.ModuleList()
        for level, level_channels in reversed(list(enumerate(config.level_channels))):
            self.norms.append(AdaptiveFrameNorm(channels, config.latent_channels, groups=groups))
            layers: list[nn.Module] = []
            for _ in range(config.blocks_per_level):
                layers.append(CausalResidualBlock(channels, level_channels, groups=groups, time_padding=padding))
                channels = level_channels
            if level > 0:
                doubles_time = config.temporal_downsampling[level - 1]
                layers.append(DepthToSpaceTime(channels, doubles_time=doubles_time, time_padding=padding))
            self.levels.append(nn.Sequential(*layers))
        self.norm = FrameGroupNorm(groups, channels)
        self.head = CausalConv3d(channels, 3 * config.patch_area, time_padding=padding)

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        steering = clip_from_tokens(latents, grid)
        hidden = self.middle(self.stem(steering))
        for norm, level in zip(self.norms, self.levels, strict=True):
            hidden = level(norm(hidden, steering))
        patches = self.head(F.silu(self.norm(hidden)))
        height, width = self.config.patch_size
        clip = rearrange(patches, "b (c p q) t h w -> b c t (h p) (w q)", p=height, q=width)
        return as_asked(clip, grid)
