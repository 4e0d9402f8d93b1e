"""Structural similarity of reconstructions.

Paper: Image Quality Assessment: From Error Visibility to Structural Similarity (Wang et al., 2004), IEEE TIP
13(4), eq. 13.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from visual_tokenizer.errors import UserError
from visual_tokenizer.metrics._structure import WINDOW, similarity_maps
from visual_tokenizer.metrics.base import MetricConfig, PictureMean, round_to_levels


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
        UserError: H or W is below 11.
    """
    if min(pixels.shape[-2:]) < WINDOW:
        raise UserError(f"pixels must be at least {WINDOW} x {WINDOW} for SSIM, got {tuple(pixels.shape[-2:])}")
    luminance, structure = similarity_maps(round_to_levels(pixels), round_to_levels(reconstruction))
    return (luminance * structure).flatten(1).mean(1)


@dataclass(kw_only=True)
class SSIMConfig(MetricConfig):
    """SSIM has no field."""


class SSIM(PictureMean):
    """Mean over pictures of `ssim`, as `ssim`."""

    Config = SSIMConfig

    def __init__(self, config: SSIMConfig | None = None) -> None:
        super().__init__(config or SSIMConfig(), "ssim")

    def values(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the SSIM of each picture, (B,) float64."""
        return ssim(pixels, reconstruction)
