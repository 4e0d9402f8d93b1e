"""Structural similarity of reconstructions.

Paper: Image Quality Assessment: From Error Visibility to Structural Similarity (Wang et al., 2004), IEEE TIP
13(4), eq. 13.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.metrics.base import PictureMean, round_to_levels

WINDOW = 11
"""Side of the Gaussian window in pixels."""
SIGMA = 1.5
"""Standard deviation of the Gaussian window in pixels."""
C1 = (0.01 * 255) ** 2
C2 = (0.03 * 255) ** 2


def _smooth(planes: Tensor) -> Tensor:
    """Return the Gaussian means of (M, 1, H, W) over each whole window, (M, 1, H - 10, W - 10)."""
    offsets = torch.arange(WINDOW, dtype=planes.dtype, device=planes.device) - WINDOW // 2
    window = torch.exp(-offsets.square() / (2 * SIGMA**2))
    window = window / window.sum()
    return F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


def ssim(pixels: Tensor, reconstruction: Tensor) -> Tensor:
    """Return the SSIM of each picture, (B,) float64, at most 1.

    Protocol: both clamped to [-1, 1] and rounded to 8-bit levels; data range 255; Gaussian window of 11 x 11
    with sigma 1.5, K1 = 0.01, K2 = 0.03, only windows that lie wholly inside the picture (libraries that also
    average over a padded border differ by several hundredths on small pictures); each of the three colour
    channels on its own (no grey conversion), then the mean over channels and positions.

    Args:
        pixels: (B, 3, H, W) in [-1, 1], the reference.
        reconstruction: (B, 3, H, W).

    Raises:
        ValueError: H or W is below 11.
    """
    if min(pixels.shape[-2:]) < WINDOW:
        raise ValueError(f"pixels must be at least {WINDOW} x {WINDOW} for SSIM, got {tuple(pixels.shape[-2:])}")
    a, b = (round_to_levels(picture).double().flatten(0, 1)[:, None] for picture in (pixels, reconstruction))
    mean_a, mean_b, square_a, square_b, product = _smooth(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
    variances = square_a - mean_a.square() + square_b - mean_b.square()
    covariance = product - mean_a * mean_b
    structure = (2 * covariance + C2) / (variances + C2)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
    return (luminance * structure).view(len(pixels), -1).mean(1)


class SSIM(PictureMean):
    """Mean over pictures of `ssim`, as `ssim`."""

    def __init__(self) -> None:
        super().__init__("ssim")

    def values(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the SSIM of each picture, (B,) float64."""
        return ssim(pixels, reconstruction)
