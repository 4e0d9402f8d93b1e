"""Blocks whose normalisation is modulated, position by position, by the codes that are decoded.

Paper: MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation (Zheng et al., 2022), arXiv:2209.09002,
section 3.2, eq. 6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.layers.convolution import group_norm


class SpatialNorm(nn.Module):
    """`scale(z) · GroupNorm(x) + shift(z)`, z enlarged to the size of x by nearest neighbours.

    The 1 × 1 convolutions are taken before z is enlarged, which gives the same numbers, and the enlarged maps are never
    stored.

    Args:
        channels: of x.
        code_channels: of z.
        groups: of the group normalisation.
    """

    def __init__(self, channels: int, code_channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, groups)
        self.scale = nn.Conv2d(code_channels, channels, 1)
        self.shift = nn.Conv2d(code_channels, channels, 1)

    def forward(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Normalise (B, C, h·s, w·s) by (B, Z, h, w)."""
        height, width = codes.shape[-2:]
        down, across = hidden.shape[-2] // height, hidden.shape[-1] // width
        patches = self.norm(hidden).unflatten(3, (width, across)).unflatten(2, (height, down))
        scale, shift = (part(codes)[:, :, :, None, :, None] for part in (self.scale, self.shift))
        return torch.addcmul(shift, patches, scale).flatten(4, 5).flatten(2, 3)


class ModulatedResidualBlock(nn.Module):
    """VQGAN's residual block with spatial norms: (B, in, H, W), (B, Z, h, w) → (B, out, H, W)."""

    def __init__(
        self, in_channels: int, out_channels: int, code_channels: int, *, groups: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = SpatialNorm(in_channels, code_channels, groups=groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = SpatialNorm(out_channels, code_channels, groups=groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden: Tensor, codes: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden, codes)))
        residual = self.conv2(self.dropout(F.silu(self.norm2(residual, codes))))
        return self.shortcut(hidden) + residual


class ModulatedAttention(nn.Module):
    """VQGAN's attention over all positions with a spatial norm: (B, C, H, W), (B, Z, h, w) → (B, C, H, W)."""

    def __init__(self, channels: int, code_channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm = SpatialNorm(channels, code_channels, groups=groups)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.projection = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden: Tensor, codes: Tensor) -> Tensor:
        sequence = self.query_key_value(self.norm(hidden, codes)).flatten(2).transpose(1, 2)
        query, key, value = sequence.unsqueeze(1).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value).squeeze(1)
        return hidden + self.projection(mixed.transpose(1, 2).reshape(hidden.shape))


class ModulatedSequential(nn.ModuleList):
    """Layers in a row; those with spatial norms get the codes, the others (resampling) do not."""

    def forward(self, hidden: Tensor, codes: Tensor) -> Tensor:
        for layer in self:
            part: Any = layer
            is_modulated = isinstance(part, ModulatedResidualBlock | ModulatedAttention)
            hidden = part(hidden, codes) if is_modulated else part(hidden)
        return hidden
