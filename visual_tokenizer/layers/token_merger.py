"""Blocks in which kept tokens take over what dropped ones know.

Paper: Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization (Jin et al., 2023),
arXiv:2309.04669, section 3.1, and the authors' code. Decisions are factors within the softmax, as in DynamicViT (Rao et
al., 2021), arXiv:2106.02034, section 3.2, so that their gradient tells what keeping or dropping a token would change.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visual_tokenizer.layers.attention import CrossAttention, TwoAttentionBlock

SMALLEST_SUM = 1e-6
"""Added to the sum of a softmax: with no weight at all the result is 0, and gradients of weights stay bounded."""


def weighted_softmax(scores: Tensor, weights: Tensor) -> Tensor:
    """Return `w_j exp(s_j) / Σ_k w_k exp(s_k)` over the last dimension, float32, with gradient to both."""
    scores = scores.float()
    shares = (scores - scores.detach().amax(-1, keepdim=True)).exp() * weights
    return shares / (shares.sum(-1, keepdim=True) + SMALLEST_SUM)


class WeightedAttention(CrossAttention):
    """Multi-head attention with a weight for each key: (B, N, C), (B, N, C), (B, N, N) or (B, 1, N) → (B, N, C)."""

    def forward(self, queries: Tensor, keys: Tensor, weights: Tensor) -> Tensor:  # type: ignore[override]
        query, key, value = self.heads_of(queries, keys, keys)
        scores = query @ key.transpose(2, 3) * key.shape[3] ** -0.5
        mixed = weighted_softmax(scores, weights[:, None]).to(value.dtype) @ value
        return self.projection(mixed.transpose(1, 2).flatten(2))


class MergerBlock(TwoAttentionBlock):
    """Tokens attend to kept ones before them and themselves, then to the features of dropped ones; a feed-forward."""

    self_attention_type = cross_attention_type = WeightedAttention

    def forward(self, tokens: Tensor, features: Tensor, decisions: Tensor) -> Tensor:
        own = self.self_norm(tokens)
        tokens = tokens + self.self_attention(own, own, causal_weights(decisions))
        tokens = tokens + self.cross_attention(self.cross_norm(tokens), features, 1 - decisions[:, None])
        return tokens + self.feed_forward(tokens)


def causal_weights(decisions: Tensor) -> Tensor:
    """Return the weights (B, N, N) of keys: 1 for the query itself, the decision of each before it, 0 behind it."""
    length = decisions.shape[1]
    before = torch.ones(length, length, dtype=decisions.dtype, device=decisions.device).tril(-1)
    return before * decisions[:, None] + torch.eye(length, dtype=decisions.dtype, device=decisions.device)


class TokenMerger(nn.Module):
    """A stack of blocks with a final norm: features (B, N, C) and decisions (B, N) → (B, N, C).

    What becomes of a kept token does not depend on what becomes of dropped ones, only on their features.
    """

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.features_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(MergerBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, decisions: Tensor) -> Tensor:
        normed, tokens = self.features_norm(features), features
        for block in self.blocks:
            tokens = block(tokens, normed, decisions)
        return self.norm(tokens)
