"""The first codebook of all positions, then the second of all positions, and so on.

Paper: Simple and Controllable Music Generation (Copet et al., 2023), arXiv:2306.05284, "coarse first"; AudioLM
(Borsos et al., 2022), arXiv:2209.03143.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmlm.codebook_patterns.base import CodebookPattern, PatternConfig


@dataclass(kw_only=True)
class CoarseFirstConfig(PatternConfig):
    """No fields."""


class CoarseFirst(CodebookPattern):
    """The whole picture coarsely before any detail; a prefix of it decodes once the first codebook is there."""

    Config = CoarseFirstConfig

    def arrange(self, positions: int, codebooks: int) -> list[int | None]:
        return [codebook for codebook in range(codebooks) for _ in range(positions)]
