"""Codebook k lags k positions behind the first: step s holds codebook k of position s - k.

Paper: Simple and Controllable Music Generation (Copet et al., 2023), arXiv:2306.05284, "delay"; AudioCraft's
`DelayedPatternProvider`. There the codebooks of a step are predicted at once, by a head each; a causal language model
has one head, so here they follow each other within the step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Len

from mmlm.codebook_patterns.base import EMPTY, CodebookPattern, PatternConfig


@dataclass(kw_only=True)
class DelayConfig(PatternConfig):
    """The token of places without a picture token, before a codebook's first and after its last."""

    empty_token: Annotated[str, Len(1)] = "<|delay|>"
    """Stands where step - codebook is not a position of the picture."""


class Delay(CodebookPattern):
    """`positions + codebooks - 1` steps of `codebooks` places."""

    Config = DelayConfig

    def arrange(self, positions: int, codebooks: int) -> list[int | None]:
        steps = range(positions + codebooks - 1)
        return [book if 0 <= step - book < positions else EMPTY for step in steps for book in range(codebooks)]
