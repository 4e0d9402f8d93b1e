"""Classes by the nearest training pictures.

Paper: Unsupervised Feature Learning via Non-Parametric Instance Discrimination (Wu et al., 2018), arXiv:1805.01978,
section 3.4, with plain votes in place of weighted ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visual_tokenizer.errors import UserError
from visual_tokenizer.semantics._cosines import cosines
from visual_tokenizer.semantics._pictures import SemanticData, View
from visual_tokenizer.semantics.base import SemanticMeasure, SemanticMeasureConfig


@dataclass(kw_only=True)
class KNNConfig(SemanticMeasureConfig):
    """Fields of the nearest neighbours."""

    neighbours: int = 5
    """Training pictures that vote, all where there are fewer; 1 or more."""

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise UserError(f"neighbours must be 1 or more, got {self.neighbours}")


class KNN(SemanticMeasure):
    """Accuracy of the vote of the k most cosine-similar training pictures, as `knn_accuracy_…`.

    The greater sum of cosines decides between classes with equally many votes. A held-out picture of a class that no
    training picture has counts as wrong.
    """

    Config = KNNConfig
    needs = ("labels",)

    def measure(self, data: SemanticData) -> dict[str, float]:
        """Return the accuracy of each view and, as chance, the share of the commonest class."""
        wanted = data.class_numbers(data.heldout)
        owned = data.class_numbers(data.train)
        values = {"knn_accuracy_chance": data.majority_share}
        for name, view in data.views.items():
            found = nearest_classes(view, owned, len(data.classes), self.config.neighbours)
            values[f"knn_accuracy_{name}"] = (found == wanted).double().mean().item()
        return values


def nearest_classes(view: View, classes: Tensor, count: int, neighbours: int) -> Tensor:
    """Return the class that the neighbours of each held-out picture vote for, (P',) int64.

    Args:
        view: vectors of the pictures.
        classes: (P,) int64 in [0, count) of the training pictures.
        count: number of classes.
        neighbours: k.
    """
    k = min(neighbours, len(classes))
    found = []
    for part in cosines(view):
        nearest = part.topk(k, dim=1)
        voted = classes[nearest.indices]
        votes = torch.zeros(len(part), count, dtype=torch.float64)
        votes.scatter_add_(1, voted, 1 + nearest.values / (2 * k + 1))  # sums of cosines differ by 2 k at most
        found.append(votes.argmax(1))
    return torch.cat(found)
