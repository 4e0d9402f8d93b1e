"""What a token says about the class of its picture.

Source: Introduction to Information Retrieval (Manning et al., 2008), section 16.3: normalised mutual information.
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
class MutualInformationConfig(SemanticMeasureConfig):
    """Fields of the mutual information."""

    shuffles: int = 10
    """Random orders of the classes over which chance is averaged; 1 or more."""

    def __post_init__(self) -> None:
        if self.shuffles < 1:
            raise UserError(f"shuffles must be 1 or more, got {self.shuffles}")


class MutualInformation(SemanticMeasure):
    """2 I(code; class) / (H(code) + H(class)) over tokens, a mean over codebooks, as `mutual_information_tokens`.

    Nothing is fitted: training and held-out pictures are taken together. With few tokens it is above 0 by chance, which
    shuffled classes show.
    """

    Config = MutualInformationConfig
    needs = ("labels",)

    def measure(self, data: SemanticData) -> dict[str, float]:
        """Return the value and, as chance, that of the same tokens with the pictures' classes shuffled."""
        pictures = join_pictures([data.train, data.heldout])
        classes, count = data.class_numbers(pictures), len(data.classes)
        chance = [
            mutual_information(pictures.indices, shuffled(classes, self.seed + number), count)
            for number in range(self.config.shuffles)
        ]
        return {
            "mutual_information_tokens": mutual_information(pictures.indices, classes, count),
            "mutual_information_chance": sum(chance) / len(chance),
        }


def mutual_information(indices: Tensor, classes: Tensor, count: int) -> float:
    """Return the normalised mutual information of (P, N, Q) indices with classes, a mean over codebooks, in [0, 1].

    Args:
        indices: integers, `ABSENT` where there is no token.
        classes: (P,) int64 in [0, count).
        count: number of classes.
    """
    values = []
    for book in indices.unbind(2):
        table = code_class_counts(book, classes, count)[1].double()
        shares = table / table.sum()
        both, codes, names = (torch.special.entr(part).sum() for part in (shares, shares.sum(1), shares.sum(0)))
        values.append(2 * (codes + names - both) / (codes + names) if codes + names > 0 else torch.zeros(()).double())
    return torch.stack(values).mean().clamp(min=0).item()
