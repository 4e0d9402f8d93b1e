"""All codebooks of a position, one after the other, then those of the next position.

Paper: Simple and Controllable Music Generation (Copet et al., 2023), arXiv:2306.05284, "flattening".
"""

from __future__ import annotations

from dataclasses import dataclass

from mmlm.codebook_patterns.base import CodebookPattern, PatternConfig


@dataclass(kw_only=True)
class FlattenedConfig(PatternConfig):
    """No fields."""


class Flattened(CodebookPattern):
    """Exact: each token is predicted from all coarser ones of its position and from all positions before."""

    Config = FlattenedConfig

    def arrange(self, positions: int, codebooks: int) -> list[int | None]:
        return [*range(codebooks)] * positions
