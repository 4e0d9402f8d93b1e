"""Classes by a linear classifier.

Paper: Understanding Intermediate Layers Using Linear Classifier Probes (Alain & Bengio, 2016), arXiv:1610.01644.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.errors import UserError
from visual_tokenizer.semantics._logistic_regression import LogisticRegression, fit_logistic_regression
from visual_tokenizer.semantics._pictures import SemanticData
from visual_tokenizer.semantics.base import SemanticMeasure, SemanticMeasureConfig


@dataclass(kw_only=True)
class LinearProbeConfig(SemanticMeasureConfig):
    """Fields of the linear classifier."""

    strengths: list[float] = field(default_factory=lambda: [0.001, 0.01, 0.1, 1.0, 10.0, 100.0])
    """Inverse strengths of the regularisation (scikit-learn's C) of which one is chosen, each above 0, growing."""

    validation_fraction: float = 0.2
    """Share of the training pictures on which it is chosen, by the least cross-entropy; in (0, 1). The chosen one is
    fitted again on all."""

    def __post_init__(self) -> None:
        if not self.strengths or self.strengths[0] <= 0 or sorted(set(self.strengths)) != list(self.strengths):
            raise UserError(f"strengths must be growing numbers above 0, at least one, got {self.strengths}")
        if not 0 < self.validation_fraction < 1:
            raise UserError(f"validation_fraction must be in (0, 1), got {self.validation_fraction}")


class LinearProbe(SemanticMeasure):
    """Accuracy of a multinomial logistic regression, as `linear_accuracy_…`.

    Channels of codes and of the teacher are standardised, bags of tokens are not. A held-out picture of a class that no
    training picture has counts as wrong.
    """

    Config = LinearProbeConfig
    needs = ("labels",)

    def measure(self, data: SemanticData) -> dict[str, float]:
        """Return the accuracy of each view and, as chance, the share of the commonest class."""
        owned, wanted = data.class_numbers(data.train), data.class_numbers(data.heldout)
        values = {"linear_accuracy_chance": data.majority_share}
        for name, view in data.views.items():
            view = view.standardised()
            classifier = self.fit(view.train, owned, len(data.classes))
            values[f"linear_accuracy_{name}"] = accuracy(classifier, view.heldout, wanted)
        return values

    def fit(self, rows: Tensor, classes: Tensor, count: int) -> LogisticRegression:
        """Return the classifier of (P, D) rows with the strength that serves pictures best which it has not seen."""
        strengths = self.config.strengths
        held = round(len(classes) * self.config.validation_fraction)
        if len(strengths) == 1 or not 0 < held < len(classes):
            return fit_logistic_regression(rows, classes, count, strengths[0])
        order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(self.seed))
        seen, unseen = order[held:], order[:held]
        shown, kept = rows.index_select(0, seen), rows.index_select(0, unseen)
        losses = []
        for strength in strengths:
            classifier = fit_logistic_regression(shown, classes[seen], count, strength)
            losses.append(F.cross_entropy(classifier.logits(kept), classes[unseen]).item())
        return fit_logistic_regression(rows, classes, count, strengths[losses.index(min(losses))])


def accuracy(classifier: LogisticRegression, rows: Tensor, classes: Tensor) -> float:
    """Return the share of (P, D) rows that are put into their class."""
    return (classifier.logits(rows).argmax(1) == classes).double().mean().item()
