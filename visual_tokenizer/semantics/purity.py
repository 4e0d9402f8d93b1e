"""Does a code stand for one class?

Source: Introduction to Information Retrieval (Manning et al., 2008), section 16.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visual_tokenizer.errors import UserError
from visual_tokenizer.semantics._code_classes import code_class_counts, shuffled
from visual_tokenizer.semantics._pictures import SemanticData, join_pictures
from visual_tokenizer.semantics.base import SemanticMeasure, SemanticMeasureConfig


@dataclass(kw_only=True)
class PurityConfig(SemanticMeasureConfig):
    """Fields of the purity."""

    shuffles: int = 10
    """Random orders of the classes over which chance is averaged; 1 or more."""

    def __post_init__(self) -> None:
        if self.shuffles < 1:
            raise UserError(f"shuffles must be 1 or more, got {self.shuffles}")


class Purity(SemanticMeasure):
    """Share of a code's tokens that are of its commonest class, a mean over used codes, as `purity_tokens`.

    Codes are weighted by their tokens, codebooks alike. Nothing is fitted: training and held-out pictures are taken
    together. Rare codes are pure by chance, so the value means something only beside that of shuffled classes.
    """

    Config = PurityConfig
    needs = ("labels",)

    def measure(self, data: SemanticData) -> dict[str, float]:
        """Return the purity and, as chance, that of the same tokens with the pictures' classes shuffled."""
        pictures = join_pictures([data.train, data.heldout])
        classes, count = data.class_numbers(pictures), len(data.classes)
        chance = [
            purity(pictures.indices, shuffled(classes, self.seed + number), count)
            for number in range(self.config.shuffles)
        ]
        return {
            "purity_tokens": purity(pictures.indices, classes, count),
            "purity_chance": sum(chance) / len(chance),
        }


def purity(indices: Tensor, classes: Tensor, count: int) -> float:
    """Return the weighted purity of (P, N, Q) indices, a mean over codebooks, in (0, 1].

    Args:
        indices: integers, `ABSENT` where there is no token.
        classes: (P,) int64 in [0, count).
        count: number of classes.
    """
    tables = [code_class_counts(book, classes, count)[1] for book in indices.unbind(2)]
    return torch.stack([table.amax(1).sum() / table.sum() for table in tables]).double().mean().item()
