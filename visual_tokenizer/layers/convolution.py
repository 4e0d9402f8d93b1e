"""Residual, attention and resampling blocks of the VQGAN family.

Paper: Taming Transformers for High-Resolution Image Synthesis (Esser et al., 2021), arXiv:2012.09841, appendix A,
table 7.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.layers.shape import CNNShape

ResidualOf = Callable[[int, int], nn.Module]
"""Makes a residual block of channels before and after."""
AttentionOf = Callable[[int], nn.Module]
"""Makes attention of so many channels."""


def group_norm(channels: int, groups: int) -> nn.GroupNorm:
    """Group normalisation with the family's epsilon."""
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Norm, SiLU, 3 × 3 convolution, twice, beside a (projected) identity: (B, in, H, W) → (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden)))
        residual = self.conv2(self.dropout(F.silu(self.norm2(residual))))
        return self.shortcut(hidden) + residual


class SpatialAttention(nn.Module):
    """Single-head self-attention over all positions of a feature map: (B, C, H, W) → (B, C, H, W)."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.projection = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, channels, height, width = hidden.shape
        sequence = self.query_key_value(self.norm(hidden)).flatten(2).transpose(1, 2)
        query, key, value = sequence.unsqueeze(1).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        return hidden + self.projection(mixed.transpose(1, 2).reshape(batch, channels, height, width))


class Downsample(nn.Module):
    """Stride-2 convolution; padded on the right and bottom only, as in the published code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(F.pad(hidden, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))


def middle_layers(config: CNNShape, block: ResidualOf, attention: AttentionOf) -> list[nn.Module]:
    """Return the layers of the coarsest level, in an encoder the last and in a decoder the first."""
    channels = config.level_channels[-1]
    layers = [block(channels, channels)]
    if config.middle_attention:
        layers.append(attention(channels))
    return [*layers, block(channels, channels)]


def upward_layers(config: CNNShape, image_size: int, block: ResidualOf, attention: AttentionOf) -> list[nn.Module]:
    """Return a decoder's layers between its first convolution and its last norm: a block more a level than before."""
    layers = middle_layers(config, block, attention)
    channels = config.level_channels[-1]
    resolution = image_size // max(config.sides)
    for level, level_channels in reversed(list(enumerate(config.level_channels))):
        for _ in range(config.blocks_per_level + 1):
            layers.append(block(channels, level_channels))
            channels = level_channels
            if resolution in config.attention_resolutions:
                layers.append(attention(channels))
        if level > 0:
            layers.append(Upsample(channels))
            resolution *= 2
    return layers


def tokens_from_map(feature_map: Tensor) -> Tensor:
    """Flatten (B, C, h, w) to (B, h·w, C), row by row."""
    return feature_map.flatten(2).transpose(1, 2)


def map_from_tokens(tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Fold (B, h·w, C) back to (B, C, h, w)."""
    return tokens.transpose(1, 2).unflatten(2, grid).contiguous(memory_format=torch.channels_last)


def fold_patches(pixels: Tensor, patch_size: list[int]) -> Tensor:
    """Fold each patch of pixels into channels: (B, C, h·p, w·q) → (B, C·p·q, h, w)."""
    return rearrange(pixels, "b c (h p) (w q) -> b (c p q) h w", p=patch_size[0], q=patch_size[1])


def unfold_patches(feature_map: Tensor, patch_size: list[int]) -> Tensor:
    """Undo `fold_patches`: (B, C·p·q, h, w) → (B, C, h·p, w·q)."""
    return rearrange(feature_map, "b (c p q) h w -> b c (h p) (w q)", p=patch_size[0], q=patch_size[1])
