"""Ridge regression whose penalty is chosen by leaving each row out in turn, in closed form and float64.

Source: Ridge Regression: Biased Estimation for Nonorthogonal Problems (Hoerl & Kennard, 1970), Technometrics 12(1); the
left-out residual of row i is e_i / (1 − h_i), h_i its leverage (Allen, 1974, Technometrics 16(1)).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visual_tokenizer.semantics._logistic_regression import product

RATIOS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
"""Penalties of which one is chosen, as shares of the mean eigenvalue of the rows' covariance."""
CHUNK = 256
"""Sparse rows that are made dense at a time."""


@dataclass(frozen=True)
class RidgeMap:
    """A fitted affine map."""

    weight: Tensor
    """(D, E) float64."""
    mean: Tensor
    """(D,) float64, of the rows it was fitted on."""
    target_mean: Tensor
    """(E,) float64, of their targets."""
    ratio: float
    """The penalty that was chosen, of `RATIOS`."""

    def __call__(self, rows: Tensor) -> Tensor:
        """Return (P, E) of (P, D) rows, dense or sparse."""
        return product(rows, self.weight) + (self.target_mean - self.mean @ self.weight)


def fit_ridge(rows: Tensor, targets: Tensor) -> RidgeMap:
    """Fit `targets` by an affine map of `rows` with the penalty of the least left-out squared error.

    Args:
        rows: (P, D) float64, dense or sparse (COO); P 2 or more.
        targets: (P, E) float64.
    """
    mean = (rows.sum(0).to_dense() if rows.is_sparse else rows.sum(0)) / rows.shape[0]
    target_mean = targets.mean(0)
    centred = targets - target_mean
    values, left = _left_singular(rows, mean)
    projected = left.T @ centred
    errors, scale = [], values.sum() / max(1, min(len(values), rows.shape[0] - 1))
    for ratio in RATIOS:
        kept = values / (values + ratio * scale)
        leverage = 1 / rows.shape[0] + left.square() @ kept
        residual = centred - left @ (kept[:, None] * projected)
        errors.append((residual.square().sum(1) / (1 - leverage).clamp(min=1e-9).square()).mean().item())
    ratio = RATIOS[errors.index(min(errors))]
    dual = left @ (projected / (values + ratio * scale)[:, None])  # sums to 0, because `left` is centred
    return RidgeMap(product(rows.T.coalesce() if rows.is_sparse else rows.T, dual), mean, target_mean, ratio)


def _left_singular(rows: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared singular values (R,) that are not 0 and left vectors (P, R) of centred rows.

    The smaller of covariance (D, D) and Gram matrix (P, P) is made.
    """
    if rows.shape[1] <= rows.shape[0]:
        dense = (rows.to_dense() if rows.is_sparse else rows) - mean
        values, vectors = torch.linalg.eigh(dense.T @ dense)
        kept = values > 1e-12 * values[-1].clamp(min=1e-300)
        return values[kept], dense @ vectors[:, kept] / values[kept].sqrt()
    gram = torch.cat(
        [
            product(rows, (part.to_dense() if part.is_sparse else part).T.contiguous()).T
            for part in (
                rows.index_select(0, torch.arange(start, min(start + CHUNK, rows.shape[0])))
                for start in range(0, rows.shape[0], CHUNK)
            )
        ]
    )
    gram = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    values, left = torch.linalg.eigh((gram + gram.T) / 2)
    kept = values > 1e-12 * values[-1].clamp(min=1e-300)
    return values[kept], left[:, kept]
