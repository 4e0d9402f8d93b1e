"""Kernel distance between two sets of embeddings, whose expectation does not depend on how many there are.

Paper: Demystifying MMD GANs (Bińkowski et al., 2018), arXiv:1801.01401, section 4: the unbiased squared maximum mean
discrepancy with a cubic kernel. With Inception's embeddings it is called KID; with another network's it is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visual_tokenizer.errors import UserError


def cubic_kernel(first: Tensor, second: Tensor) -> Tensor:
    """Return (x · y / D + 1)³ of all rows of (N, D) and (M, D), (N, M)."""
    return (first @ second.T / first.shape[1] + 1) ** 3


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Return the unbiased squared MMD of embeddings (N, D) and (M, D), computed in float64; below 0 by chance only.

    Args:
        first: N >= 2 embeddings.
        second: M >= 2 embeddings.

    Raises:
        ValueError: too few embeddings, or widths that differ.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise UserError(
            f"embeddings must be (N, D) and (M, D) with one D, got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    if min(len(first), len(second)) < 2:
        raise UserError(f"each set must have 2 embeddings or more, got {len(first)} and {len(second)}")
    first, second = first.double(), second.double()
    within = [_mean_off_diagonal(cubic_kernel(one, one)) for one in (first, second)]
    return float(within[0] + within[1] - 2 * cubic_kernel(first, second).mean())


def _mean_off_diagonal(matrix: Tensor) -> Tensor:
    count = len(matrix)
    return (matrix.sum() - torch.trace(matrix)) / (count * (count - 1))
