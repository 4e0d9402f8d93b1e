"""Pre-norm transformer blocks without causality, and where their tokens are.

Papers: An Image is Worth 16x16 Words (Dosovitskiy et al., 2021), arXiv:2010.11929, eq. 2–3; Attention Is All You Need
(Vaswani et al., 2017), arXiv:1706.03762, section 3.5, whose sines and cosines say, in two dimensions as in Masked
Autoencoders Are Scalable Vision Learners (He et al., 2021), arXiv:2111.06377, by half of the channels the column and by
half the row.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TransformerBlock(nn.Module):
    """Self-attention and a GELU feed-forward of four times the width: (B, N, C) → (B, N, C)."""

    gelu: ClassVar[str] = "tanh"
    """How GELU is computed, as torch has it: by tanh, or exactly (none)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        heads = self.query_key_value(self.attention_norm(hidden)).view(batch, length, 3, self.heads, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        hidden = hidden + self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        return hidden + self.contract(F.gelu(self.expand(self.feed_forward_norm(hidden)), approximate=self.gelu))


class Transformer(nn.Module):
    """A stack of blocks with a final norm: (B, N, C) → (B, N, C)."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)


def learned_positions(length: int, width: int) -> nn.Parameter:
    """Position embeddings (1, length, width), drawn with the usual standard deviation of 0.02."""
    return nn.Parameter(torch.randn(1, length, width) * 0.02)


def sinusoidal_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Return (1, height · width, channels) float32, row by row; `channels` is a multiple of 4.

    A position (y, x) is [sin xω, cos xω, sin yω, cos yω] with ω_i = 10000^(−4i / channels).
    """
    quarter = channels // 4
    exponents = torch.arange(quarter, device=device, dtype=torch.float32) / quarter
    frequencies = torch.exp(-math.log(10000.0) * exponents)

    def waves(length: int) -> Tensor:
        angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    columns = waves(width)[None, :, :].expand(height, -1, -1)
    rows = waves(height)[:, None, :].expand(-1, width, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, height * width, channels)
