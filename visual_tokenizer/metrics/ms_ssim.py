"""Multi-scale structural similarity of reconstructions.

Paper: Multiscale Structural Similarity for Image Quality Assessment (Wang et al., 2003), Asilomar, eq. 7: contrast and
structure at five scales, luminance at the coarsest, each raised to its exponent and multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.errors import UserError
from visual_tokenizer.metrics._structure import WINDOW, similarity_maps
from visual_tokenizer.metrics.base import MetricConfig, PictureMean, round_to_levels

EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the scales, the finest first (Wang et al., 2003, section 3.2)."""
MIN_SIDE = WINDOW * 2 ** (len(EXPONENTS) - 1)
"""Pixels of the shorter side at which the coarsest scale still holds one window: 176."""


def ms_ssim(pixels: Tensor, reconstruction: Tensor) -> Tensor:
    """Return the MS-SSIM of each picture, (B,) float64 in [0, 1].

    Protocol: windows, constants, rounding and colour as in SSIM; from one scale to the next, means of 2 x 2 pixels (an
    odd last row or column is left out); a scale's mean below 0 counts 0, since a negative number has no such power;
    the product is taken for each colour channel, then the mean over channels.

    Args:
        pixels: (B, 3, H, W) in [-1, 1], the reference.
        reconstruction: (B, 3, H, W).

    Raises:
        UserError: H or W is below 176.
    """
    if min(pixels.shape[-2:]) < MIN_SIDE:
        raise UserError(f"pixels must be at least {MIN_SIDE} x {MIN_SIDE} for MS-SSIM, got {tuple(pixels.shape[-2:])}")
    a, b = round_to_levels(pixels).double(), round_to_levels(reconstruction).double()
    result = torch.ones(pixels.shape[:2], dtype=torch.float64, device=pixels.device)
    for scale, exponent in enumerate(EXPONENTS):
        if scale:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        luminance, structure = similarity_maps(a, b)
        terms = luminance * structure if scale == len(EXPONENTS) - 1 else structure
        result = result * terms.mean((2, 3)).clamp(min=0) ** exponent
    return result.mean(1)


@dataclass(kw_only=True)
class MSSSIMConfig(MetricConfig):
    """MS-SSIM has no field."""


class MSSSIM(PictureMean):
    """Mean over pictures of `ms_ssim`, as `ms_ssim`."""

    Config = MSSSIMConfig

    def __init__(self, config: MSSSIMConfig | None = None) -> None:
        super().__init__(config or MSSSIMConfig(), "ms_ssim")

    def values(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the MS-SSIM of each picture, (B,) float64."""
        return ms_ssim(pixels, reconstruction)
