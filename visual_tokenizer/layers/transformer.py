"""Pre-norm transformer blocks without causality.

Paper: An Image is Worth 16x16 Words (Dosovitskiy et al., 2021), arXiv:2010.11929, eq. 2–3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TransformerBlock(nn.Module):
    """Self-attention and a GELU feed-forward of four times the width: (B, N, C) → (B, N, C)."""

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
        return hidden + self.contract(F.gelu(self.expand(self.feed_forward_norm(hidden)), approximate="tanh"))


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
