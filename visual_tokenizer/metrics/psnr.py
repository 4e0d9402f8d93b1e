"""Peak signal-to-noise ratio of reconstructions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from visual_tokenizer.metrics.base import MetricConfig, PictureMean, round_to_levels

IDENTICAL_DB = 100.0
"""What a picture counts that equals its reconstruction, and the most that any picture counts."""


def psnr(pixels: Tensor, reconstruction: Tensor) -> Tensor:
    """Return the PSNR of each picture in dB, (B,) float64.

    Protocol: both clamped to [-1, 1] and rounded to 8-bit levels; data range 255; the squared error is
    averaged over the picture's three channels and all pixels; at most 100 dB, so that identical pictures
    keep the mean finite.

    Args:
        pixels: (B, 3, H, W) in [-1, 1], the reference.
        reconstruction: (B, 3, H, W).
    """
    difference = round_to_levels(pixels).double() - round_to_levels(reconstruction).double()
    error = difference.square().mean((1, 2, 3))
    return (10 * (255.0**2 / error).log10()).clamp(max=IDENTICAL_DB)


@dataclass(kw_only=True)
class PSNRConfig(MetricConfig):
    """PSNR has no field."""


class PSNR(PictureMean):
    """Mean over pictures of `psnr`, in dB, as `psnr_db`: a mean of logarithms."""

    Config = PSNRConfig

    def __init__(self, config: PSNRConfig | None = None) -> None:
        super().__init__(config or PSNRConfig(), "psnr_db")

    def values(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the PSNR of each picture, (B,) float64 dB."""
        return psnr(pixels, reconstruction)
