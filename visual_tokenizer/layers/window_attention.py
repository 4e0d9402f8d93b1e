"""Self-attention within windows of a grid, with a learned bias for each relative position.

Paper: Swin Transformer: Hierarchical Vision Transformer using Shifted Windows (Liu et al., 2021), arXiv:2103.14030,
eq. 4; the windows are not shifted.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class WindowAttention(nn.Module):
    """(B, H, W, C) → (B, H, W, C), each window of `window` × `window` positions by itself."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.norm = nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width)
        self.position_bias = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads) * 0.02)

    def bias(self) -> Tensor:
        """Return what is added to the scores, (heads, window², window²), from the difference of two positions."""
        places = torch.arange(self.window, device=self.position_bias.device)
        apart = places[:, None] - places[None, :] + self.window - 1
        index = apart[:, None, :, None] * (2 * self.window - 1) + apart[None, :, None, :]
        return self.position_bias[index.reshape(self.window**2, self.window**2)].permute(2, 0, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        rows, columns = hidden.shape[1] // self.window, hidden.shape[2] // self.window
        windows = rearrange(
            self.query_key_value(self.norm(hidden)),
            "b (r p) (s q) (n h d) -> n (b r s) h (p q) d",
            p=self.window,
            q=self.window,
            n=3,
            h=self.heads,
        )
        query, key, value = windows.unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=self.bias().to(query.dtype))
        whole = rearrange(
            mixed, "(b r s) h (p q) d -> b (r p) (s q) (h d)", r=rows, s=columns, p=self.window, q=self.window
        )
        return self.projection(whole)
