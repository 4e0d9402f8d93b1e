"""What measures of codes and classes share: the same number for shuffled classes is what chance gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from visual_tokenizer.outputs import ABSENT
from visual_tokenizer.semantics.base import SemanticData, SemanticMeasure, SemanticMeasureConfig, join_pictures


@dataclass(kw_only=True)
class CodeClassConfig(SemanticMeasureConfig):
    """Fields of both measures."""

    shuffles: Annotated[int, Ge(1)] = 10
    """Random orders of the classes over which chance is averaged."""


class CodeClassMeasure(SemanticMeasure):
    """A number of each codebook's tokens and their pictures' classes, a mean over codebooks.

    Nothing is fitted: training and held-out pictures are taken together.
    """

    needs = ("labels",)

    def of_tokens(self, codes: np.ndarray, classes: np.ndarray) -> float:
        """Return the number, of the codes (T,) and classes (T,) of one codebook's tokens."""
        raise NotImplementedError

    def value(self, indices: Tensor, classes: Tensor) -> float:
        """Return the mean over codebooks.

        Args:
            indices: (P, N, Q) integers, `ABSENT` where there is no token.
            classes: (P,) int64, -1 for pictures that are left out.
        """
        values = []
        for book in indices.unbind(2):
            present = (book != ABSENT) & (classes >= 0)[:, None]
            owners = classes[:, None].expand_as(book)[present]
            values.append(self.of_tokens(book[present].numpy(), owners.numpy()))
        return float(np.mean(values))

    def measure(self, data: SemanticData) -> dict[str, float]:
        """Return the value and, as chance, that of the same tokens with the pictures' classes shuffled."""
        pictures = join_pictures([data.train, data.heldout])
        classes, chance = data.class_numbers(pictures), []
        for number in range(self.config.shuffles):
            order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(self.seed + number))
            chance.append(self.value(pictures.indices, classes[order]))
        return {
            f"{self.config.type}_tokens": self.value(pictures.indices, classes),
            f"{self.config.type}_chance": sum(chance) / len(chance),
        }
