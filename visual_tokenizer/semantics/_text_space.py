"""A linear map from pictures to a frozen text encoder's space, in place of a trained alignment."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from visual_tokenizer.semantics.base import View

RATIOS = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
"""Penalties of which one is chosen, as shares of the mean eigenvalue of the rows' covariance."""


def fit_text_map(rows: Any, targets: Any) -> Any:
    """Return scikit-learn's ridge regression with the penalty of the least left-out squared error.

    Args:
        rows: (P, D) float64, dense or sparse; P 2 or more.
        targets: (P, E) float64.
    """
    from sklearn.linear_model import RidgeCV

    values = _eigenvalues(rows)
    scale = values.sum() / max(1, min(len(values), rows.shape[0] - 1)) or 1.0  # if nothing varies, no penalty matters
    return RidgeCV([ratio * scale for ratio in RATIOS]).fit(rows, targets)


def _eigenvalues(rows: Any) -> np.ndarray:
    """Return those of the rows' scatter around their mean that are not 0, by the smaller of (D, D) and (P, P)."""
    from sklearn.preprocessing import KernelCenterer
    from sklearn.utils.extmath import safe_sparse_dot

    if rows.shape[1] <= rows.shape[0]:
        dense = rows if isinstance(rows, np.ndarray) else rows.toarray()
        centred = dense - dense.mean(0)
        gram = centred.T @ centred
    else:
        gram = KernelCenterer().fit_transform(safe_sparse_dot(rows, rows.T, dense_output=True))
    values = np.linalg.eigvalsh(gram)
    return values[values > 1e-12 * values[-1]]


def to_text_space(view: View, texts: Tensor) -> Tensor:
    """Return where the held-out pictures come to lie, (P', E) float64, the mean of the training texts subtracted.

    Args:
        view: vectors of the pictures.
        texts: (P, E) float64, of the training pictures' captions.
    """
    view = view.standardised()
    return torch.from_numpy(fit_text_map(view.train, texts.numpy()).predict(view.heldout)) - texts.mean(0)
