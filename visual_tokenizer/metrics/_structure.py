"""The terms of structural similarity, shared by SSIM and MS-SSIM.

Paper: Image Quality Assessment: From Error Visibility to Structural Similarity (Wang et al., 2004), IEEE TIP
13(4), eq. 6 and 13.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

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


def similarity_maps(levels: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
    """Return luminance and contrast-structure at each window that lies wholly inside, (B, 3, H - 10, W - 10) float64.

    Args:
        levels: (B, 3, H, W) levels in [0, 255], H and W 11 or more.
        reconstruction: (B, 3, H, W), likewise.
    """
    a, b = (picture.double().flatten(0, 1)[:, None] for picture in (levels, reconstruction))
    mean_a, mean_b, square_a, square_b, product = _smooth(torch.cat([a, b, a * a, b * b, a * b])).chunk(5)
    variances = square_a - mean_a.square() + square_b - mean_b.square()
    covariance = product - mean_a * mean_b
    structure = (2 * covariance + C2) / (variances + C2)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
    batch = levels.shape[:2]
    return luminance[:, 0].unflatten(0, batch), structure[:, 0].unflatten(0, batch)
