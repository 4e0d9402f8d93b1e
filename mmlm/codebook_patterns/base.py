"""What every codebook pattern has in common.

Paper: Simple and Controllable Music Generation (Copet et al., 2023), arXiv:2306.05284, section 2.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from visual_tokenizer.registry import PartConfig

EMPTY = None
"""A place that no token of the picture takes; a layout fills it with the pattern's empty token."""


@dataclass(kw_only=True)
class PatternConfig(PartConfig, package="mmlm.codebook_patterns"):
    """Fields that every pattern has: none."""

    def structural_tokens(self) -> list[str]:
        """Return the names of the pattern's own tokens."""
        return [value for key, value in vars(self).items() if key.endswith("_token")]


class CodebookPattern:
    """Lays the tokens of consecutive positions with several codebooks out as one sequence.

    Every pattern keeps the tokens of one codebook in the order of their positions: the i-th token of codebook c is
    that of position i.
    """

    Config: ClassVar[type[PatternConfig]]

    def __init__(self, config: PatternConfig) -> None:
        self.config: Any = config

    def arrange(self, positions: int, codebooks: int) -> list[int | None]:
        """Return the codebook, 0 … codebooks - 1, of each place of the sequence, or `EMPTY`."""
        raise NotImplementedError


PART = CodebookPattern
