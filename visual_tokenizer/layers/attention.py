"""Blocks in which some tokens read from others.

Papers: Flamingo: a Visual Language Model for Few-Shot Learning (Alayrac et al., 2022), arXiv:2204.14198, appendix A.1.1
(the Perceiver resampler); End-to-End Object Detection with Transformers (Carion et al., 2020), arXiv:2005.12872,
appendix A.3 (queries with self- and cross-attention, positions added to queries and keys only), pre-norm as in GigaTok
(Xiong et al., 2025), arXiv:2504.08736.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CrossAttention(nn.Module):
    """Multi-head attention: queries (B, M, C), keys and values (B, N, C) → (B, M, C).

    Where `present` (B, N) bool is given, the others' values count nothing; each row has one or more that are present.
    Keys have no bias: it would add the same to all scores of a query, which the softmax takes away.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.projection = nn.Linear(width, width)

    def heads_of(self, *inputs: Tensor) -> list[Tensor]:
        """Return queries, keys and values (B, heads, N, C / heads) of three times (B, N, C)."""
        maps = (self.query, self.key, self.value)
        parts = [linear(tokens) for linear, tokens in zip(maps, inputs, strict=True)]
        return [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts]

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, present: Tensor | None = None) -> Tensor:
        query, key, value = self.heads_of(queries, keys, values)
        mask = None if present is None else present[:, None, None]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.projection(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Norm, then two linear maps with GELU between, four times as wide: (B, N, C) → (B, N, C)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.contract(F.gelu(self.expand(self.norm(hidden)), approximate="tanh"))


class ResamplerBlock(nn.Module):
    """Latents (B, M, C) attend to features (B, N, C) and to themselves, in one softmax; then a feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.latents_norm = nn.LayerNorm(width)
        self.features_norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)
        self.feed_forward = FeedForward(width)

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        own = self.latents_norm(latents)
        seen = torch.cat([self.features_norm(features), own], dim=1)
        latents = latents + self.attention(own, seen, seen)
        return latents + self.feed_forward(latents)


class ReadingBlock(nn.Module):
    """Queries (B, M, C) attend to latents (B, N, C) alone; then a feed-forward. Queries don't see one another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.queries_norm = nn.LayerNorm(width)
        self.latents_norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)
        self.feed_forward = FeedForward(width)

    def forward(self, queries: Tensor, latents: Tensor) -> Tensor:
        seen = self.latents_norm(latents)
        queries = queries + self.attention(self.queries_norm(queries), seen, seen)
        return queries + self.feed_forward(queries)


class TwoAttentionBlock(nn.Module):
    """Self-attention, cross-attention and a feed-forward, pre-norm; a subclass says who attends to what."""

    self_attention_type: ClassVar[type[nn.Module]] = CrossAttention
    cross_attention_type: ClassVar[type[nn.Module]] = CrossAttention

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width)
        self.self_attention = self.self_attention_type(width, heads)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = self.cross_attention_type(width, heads)
        self.feed_forward = FeedForward(width)


class QueryBlock(TwoAttentionBlock):
    """Queries (B, M, C) attend to themselves, then to memory (B, N, C); then a feed-forward.

    Positions are added to queries and keys of every block, never to values.
    """

    def forward(self, queries: Tensor, memory: Tensor, query_positions: Tensor, memory_positions: Tensor) -> Tensor:
        own = self.self_norm(queries)
        placed = own + query_positions
        queries = queries + self.self_attention(placed, placed, own)
        placed = self.cross_norm(queries) + query_positions
        queries = queries + self.cross_attention(placed, memory + memory_positions, memory)
        return queries + self.feed_forward(queries)
