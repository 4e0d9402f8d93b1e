"""Learned queries, one for each place of a grid, read codes of any number.

Paper: Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization (Jin et al., 2023),
arXiv:2309.04669, section 3.1, and the authors' code: codes get the position of their turn, not of their place, which
they must tell themselves; queries attend to one another and then to the codes that there are.
"""

from __future__ import annotations

from torch import Tensor, nn

from visual_tokenizer.layers.attention import TwoAttentionBlock
from visual_tokenizer.layers.transformer import learned_positions


class CodeReaderBlock(TwoAttentionBlock):
    """Queries (B, P, C) attend to themselves, then to present codes (B, N, C); then a feed-forward. Pre-norm."""

    def forward(self, queries: Tensor, codes: Tensor, present: Tensor | None) -> Tensor:
        own = self.self_norm(queries)
        queries = queries + self.self_attention(own, own, own)
        queries = queries + self.cross_attention(self.cross_norm(queries), codes, codes, present)
        return queries + self.feed_forward(queries)


class CodeReader(nn.Module):
    """(B, N, C) codes → (B, P, C).

    Args:
        most: codes that a picture can have, 1 or more.
        places: P.
        width: C; a multiple of `heads`.
        depth: blocks, 1 or more.
        heads: attention heads, 1 or more.
    """

    def __init__(self, most: int, places: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.code_positions = learned_positions(most, width)
        self.queries = learned_positions(places, width)
        self.blocks = nn.ModuleList(CodeReaderBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, codes: Tensor, present: Tensor | None = None) -> Tensor:
        """Read the codes of which `present` (B, N) bool says which there are; None for all."""
        codes = codes + self.code_positions[:, : codes.shape[1]].to(codes.dtype)
        queries = self.queries.to(codes.dtype).expand(codes.shape[0], -1, -1)
        for block in self.blocks:
            queries = block(queries, codes, present)
        return self.norm(queries)
