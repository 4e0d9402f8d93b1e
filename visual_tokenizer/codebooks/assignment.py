"""What one look into a codebook found."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Assignment:
    """Latents and the codes they chose."""

    latents: Tensor
    """(M, C) float32, with gradient; on the unit sphere where the quantizer normalises."""
    codebook: Tensor
    """(K, C) float32, with gradient where the codes learn by it."""
    indices: Tensor
    """(M,) int64."""
    codes: Tensor
    """(M, C): `codebook[indices]`, with the codebook's gradient."""
    steps: Tensor
    """int64 scalar on the device: training steps before this one."""
    noise: Tensor | None = None
    """(M, K) noise that the assignment was drawn with, where it is drawn."""


def mean_square(first: Tensor, second: Tensor) -> Tensor:
    """Return mean((first − second)²) as a scalar; 0, not NaN, where there are no tokens."""
    return (first - second).square().sum() / max(first.numel(), 1)
