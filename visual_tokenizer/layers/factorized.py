"""Blocks that treat space and time one after the other and never look ahead, and the fields of Cosmos's tokenizer.

Paper: Cosmos World Foundation Model Platform for Physical AI (NVIDIA, 2025), arXiv:2501.03575, section 5.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge, Len
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.layers.causal_convolution import CausalConv3d, FrameGroupNorm
from visual_tokenizer.layers.convolution import SpatialAttention
from visual_tokenizer.layers.shape import LevelShape


@dataclass(kw_only=True)
class CosmosShape(LevelShape):
    """Widths, depths and strides of Cosmos's network."""

    channel_multipliers: Annotated[list[Annotated[int, Ge(1)]], Len(1)] = field(default_factory=lambda: [2, 4, 4])
    """Channels of each level as multiples of `channels`, fine to coarse."""

    spatial_downsampling: list[bool] = field(default_factory=lambda: [True, True])
    """Whether height and width halve after each level but the last."""

    temporal_downsampling: list[bool] = field(default_factory=lambda: [True, False])
    """Whether the number of frames halves after each level but the last."""

    wavelet_levels: Annotated[int, Ge(1)] = 2
    """Haar transforms before the first level, each of which halves all three sides."""

    attention_resolutions: list[Annotated[int, Ge(1)]] = field(default_factory=lambda: [32])
    """Sides of the feature maps, in positions at the nominal picture size, whose levels get attention over space and
    over time; the middle always does."""

    latent_channels: Annotated[int, Ge(1)] = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_halvings("spatial_downsampling")
        self.check_halvings("temporal_downsampling")

    @property
    def strides(self) -> tuple[int, int, int]:
        """Frames (after the first), height and width in pixels that one token stands for."""
        side = 2 ** (self.wavelet_levels + sum(self.spatial_downsampling))
        return 2 ** (self.wavelet_levels + sum(self.temporal_downsampling)), side, side


def factorized_convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 1 × 3 × 3 convolution, then a causal one of 3 × 1 × 1, padded with copies of the first frame."""
    return nn.Sequential(
        CausalConv3d(in_channels, out_channels, (1, 3, 3)),
        CausalConv3d(out_channels, out_channels, (3, 1, 1), time_padding="replicate"),
    )


class FactorizedBlock(nn.Module):
    """Norm over a frame, SiLU, factorised convolution, twice, beside a (projected) identity."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = FrameGroupNorm(1, in_channels)
        self.conv1 = factorized_convolution(in_channels, out_channels)
        self.norm2 = FrameGroupNorm(1, out_channels)
        self.conv2 = factorized_convolution(out_channels, out_channels)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden)))
        return self.shortcut(hidden) + self.conv2(F.silu(self.norm2(residual)))


class CausalTemporalAttention(nn.Module):
    """Single-head self-attention of each position over its own and earlier frames: (B, C, T, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = FrameGroupNorm(1, channels)
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.projection = nn.Linear(channels, channels)

    def forward(self, hidden: Tensor) -> Tensor:
        height, width = hidden.shape[-2:]
        sequence = self.query_key_value(rearrange(self.norm(hidden), "b c t h w -> (b h w) 1 t c"))
        query, key, value = sequence.chunk(3, dim=-1)
        mixed = self.projection(F.scaled_dot_product_attention(query, key, value, is_causal=True))
        return hidden + rearrange(mixed, "(b h w) 1 t c -> b c t h w", h=height, w=width)


class FactorizedAttention(nn.Module):
    """Attention over the positions of each frame, then of each position over time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.space = SpatialAttention(channels, groups=1)
        self.time = CausalTemporalAttention(channels)

    def forward(self, hidden: Tensor) -> Tensor:
        frames = self.space(rearrange(hidden, "b c t h w -> (b t) c h w"))
        return self.time(rearrange(frames, "(b t) c h w -> b c t h w", b=hidden.shape[0]))


class HybridDownsample(nn.Module):
    """The sum of a strided convolution and an average, in space and then in time, and a 1 × 1 × 1 convolution."""

    def __init__(self, channels: int, *, in_space: bool, in_time: bool) -> None:
        super().__init__()
        self.space = CausalConv3d(channels, channels, (1, 3, 3), (1, 2, 2)) if in_space else None
        self.time = (
            CausalConv3d(channels, channels, (3, 1, 1), (2, 1, 1), time_padding="replicate") if in_time else None
        )
        self.mix = nn.Conv3d(channels, channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.space is not None:
            hidden = self.space(hidden) + reduce(hidden, "b c t (h p) (w q) -> b c t h w", "mean", p=2, q=2)
        if self.time is not None:
            doubled = torch.cat([hidden[:, :, :1], hidden], dim=2)
            hidden = self.time(hidden) + reduce(doubled, "b c (t n) h w -> b c t h w", "mean", n=2)
        return self.mix(hidden)


class HybridUpsample(nn.Module):
    """Repetition plus a convolution of it, in time (but for the first frame) and then in space, and a 1 × 1 × 1 one."""

    def __init__(self, channels: int, *, in_space: bool, in_time: bool) -> None:
        super().__init__()
        self.time = CausalConv3d(channels, channels, (3, 1, 1), time_padding="replicate") if in_time else None
        self.space = CausalConv3d(channels, channels, (1, 3, 3)) if in_space else None
        self.mix = nn.Conv3d(channels, channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.time is not None:
            hidden = hidden.repeat_interleave(2, dim=2)[:, :, 1:]
            hidden = self.time(hidden) + hidden
        if self.space is not None:
            hidden = hidden.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
            hidden = self.space(hidden) + hidden
        return self.mix(hidden)
