"""Blocks of queries of which none sees a later one.

Papers: Planting a SEED of Vision in Large Language Model (Ge et al., 2023), arXiv:2307.08041, section 3.1; the Q-Former
is BLIP-2's (Li et al., 2023), arXiv:2301.12597, section 3.1.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.layers.attention import TwoAttentionBlock


class CausalSelfAttention(nn.Module):
    """Multi-head attention of tokens to themselves and earlier ones: (B, N, C) → (B, N, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.query_key_value(tokens).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.projection(mixed.transpose(1, 2).flatten(2))


class CausalQueryBlock(TwoAttentionBlock):
    """Queries (B, M, C) attend to earlier ones, then to memory (B, N, C); then a feed-forward. Pre-norm."""

    self_attention_type = CausalSelfAttention

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        queries = queries + self.self_attention(self.self_norm(queries))
        queries = queries + self.cross_attention(self.cross_norm(queries), memory, memory)
        return queries + self.feed_forward(queries)
