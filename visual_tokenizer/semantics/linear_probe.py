"""Classes by a linear classifier.

Paper: Understanding Intermediate Layers Using Linear Classifier Probes (Alain & Bengio, 2016), arXiv:1610.01644.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt, Interval, Len

from visual_tokenizer.fields.ranges import Growing
from visual_tokenizer.semantics.base import SemanticData, SemanticMeasure, SemanticMeasureConfig, View

GRADIENT = 1e-7
"""Largest component of the gradient of the mean loss at which the search ends."""
ITERATIONS = 1000


@dataclass(kw_only=True)
class LinearProbeConfig(SemanticMeasureConfig):
    """Fields of the linear classifier."""

    strengths: Annotated[list[Annotated[float, Gt(0)]], Len(1), Growing()] = field(
        default_factory=lambda: [0.001, 0.01, 0.1, 1.0, 10.0, 100.0]
    )
    """Inverse strengths of the regularisation (scikit-learn's C) of which one is chosen."""

    validation_fraction: Annotated[float, Interval(gt=0, lt=1)] = 0.2
    """Share of the training pictures on which it is chosen, by the least cross-entropy. The chosen one is fitted again
    on all."""


class LinearProbe(SemanticMeasure):
    """Accuracy of a multinomial logistic regression, as `linear_accuracy_…`.

    Channels of codes and of the teacher are standardised, bags of tokens are not. A held-out picture of a class that no
    training picture has counts as wrong.
    """

    Config = LinearProbeConfig
    needs = ("labels",)

    def measure(self, data: SemanticData) -> dict[str, float]:
        """Return the accuracy of each view and, as chance, the share of the commonest class."""
        owned, wanted = data.class_numbers(data.train).numpy(), data.class_numbers(data.heldout).numpy()
        values = {"linear_accuracy_chance": data.majority_share}
        for name, view in data.views.items():
            values[f"linear_accuracy_{name}"] = self.accuracy(view.standardised(), owned, wanted)
        return values

    def accuracy(self, view: View, owned: np.ndarray, wanted: np.ndarray) -> float:
        """Return the share of held-out pictures that are put into their class, by the strength that serves best.

        Args:
            view: vectors of the pictures.
            owned: (P,) classes of the training pictures, two or more.
            wanted: (P',) of the held-out ones.
        """
        return float(self.fit(view.train, owned).score(view.heldout, wanted))

    def fit(self, rows: Any, classes: np.ndarray) -> Any:
        """Return the classifier of (P, D) rows with the strength that serves pictures best which it has not seen.

        Pictures of a class that is not among the seen ones judge no strength.
        """
        from sklearn.metrics import log_loss

        strengths = self.config.strengths
        held = round(len(classes) * self.config.validation_fraction)
        order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(self.seed)).numpy()
        seen, unseen = order[held:], order[:held]
        unseen = unseen[np.isin(classes[unseen], classes[seen])]
        if len(strengths) == 1 or not len(unseen) or len(set(classes[seen])) < 2:
            return fit_classifier(rows, classes, strengths[0])
        losses = []
        for strength in strengths:
            classifier = fit_classifier(rows[seen], classes[seen], strength)
            chances = classifier.predict_proba(rows[unseen])
            losses.append(log_loss(classes[unseen], chances, labels=classifier.classes_))
        return fit_classifier(rows, classes, strengths[int(np.argmin(losses))])


def fit_classifier(rows: Any, classes: np.ndarray, strength: float) -> Any:
    """Return scikit-learn's classifier that minimises strength · Σ cross-entropy + ½ ‖W‖², W (K, D); the bias is free.

    Args:
        rows: (P, D) float64, dense or sparse.
        classes: (P,) int64, two or more.
        strength: inverse of the regularisation, above 0.
    """
    from sklearn.linear_model import LogisticRegression

    # Of two classes it keeps the difference of the two rows of W, whose square is twice the sum of theirs.
    factor = 2 if len(set(classes)) == 2 else 1
    return LogisticRegression(C=factor * strength, tol=GRADIENT, max_iter=ITERATIONS).fit(rows, classes)
