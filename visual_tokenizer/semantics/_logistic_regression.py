"""Multinomial logistic regression by L-BFGS, in float64, of dense or sparse rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

GRADIENT = 1e-7
"""Largest component of the gradient of the mean loss at which the search ends."""
ITERATIONS = 1000


@dataclass(frozen=True)
class LogisticRegression:
    """A fitted linear classifier."""

    weight: Tensor
    """(D, K) float64."""
    bias: Tensor
    """(K,) float64."""

    def logits(self, rows: Tensor) -> Tensor:
        """Return (P, K) of (P, D) rows, dense or sparse."""
        return product(rows, self.weight) + self.bias


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return the product of dense or sparse rows with a dense matrix."""
    return torch.sparse.mm(rows, matrix) if rows.is_sparse else rows @ matrix


def fit_logistic_regression(rows: Tensor, classes: Tensor, count: int, strength: float) -> LogisticRegression:
    """Minimise strength · Σ cross-entropy + ½ ‖W‖²; the bias is free.

    Args:
        rows: (P, D) float64, dense or sparse (COO).
        classes: (P,) int64 in [0, count).
        count: K.
        strength: inverse of the regularisation, above 0, scikit-learn's C.
    """
    weight = torch.zeros(rows.shape[1], count, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [weight, bias],
        max_iter=ITERATIONS,
        tolerance_grad=GRADIENT,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        search.zero_grad()
        logits = product(rows, weight) + bias
        value = F.cross_entropy(logits, classes) + weight.square().sum() / (2 * strength * len(classes))
        value.backward()
        return value

    with torch.enable_grad():
        search.step(loss)  # type: ignore[no-untyped-call]
    return LogisticRegression(weight.detach(), bias.detach())
