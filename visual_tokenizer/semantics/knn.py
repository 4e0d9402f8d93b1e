"""Classes by the nearest training pictures.

Paper: Unsupervised Feature Learning via Non-Parametric Instance Discrimination (Wu et al., 2018), arXiv:1805.01978,
section 3.4, with plain votes in place of weighted ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from visual_tokenizer.semantics.base import SemanticData, SemanticMeasure, SemanticMeasureConfig, View


@dataclass(kw_only=True)
class KNNConfig(SemanticMeasureConfig):
    """Fields of the nearest neighbours."""

    neighbours: Annotated[int, Ge(1)] = 5
    """Training pictures that vote, all where there are fewer."""


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
            found = nearest_classes(view, owned, self.config.neighbours)
            values[f"knn_accuracy_{name}"] = (found == wanted).double().mean().item()
        return values


def nearest_classes(view: View, classes: Tensor, neighbours: int) -> Tensor:
    """Return the class that the neighbours of each held-out picture vote for, (P',) int64.

    Args:
        view: vectors of the pictures.
        classes: (P,) int64 of the training pictures.
        neighbours: k.
    """
    from sklearn.neighbors import KNeighborsClassifier

    k = min(neighbours, len(classes))

    def votes(distances: np.ndarray) -> np.ndarray:
        return 1 + (1 - distances) / (2 * k + 1)  # sums of cosines differ by 2 k at most

    voters = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=votes)
    return torch.from_numpy(voters.fit(view.train, classes.numpy()).predict(view.heldout))
