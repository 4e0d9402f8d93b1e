"""Perceptual distance of reconstructions in a frozen network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visual_tokenizer.losses.perceptual import Perceptual, PerceptualConfig, PerceptualFields, perceptual_distance
from visual_tokenizer.metrics.base import MetricConfig, PictureMean, round_pixels


@dataclass(kw_only=True)
class PerceptualDistanceConfig(PerceptualFields, MetricConfig):
    """Configures the perceptual distance."""


class PerceptualDistance(PictureMean):
    """Mean over pictures of the perceptual loss's distance, as `perceptual_<network>`; not LPIPS.

    Protocol: both clamped to [-1, 1] and rounded to 8-bit levels; float32, also under autocast.
    """

    Config = PerceptualDistanceConfig

    def __init__(self, config: PerceptualDistanceConfig | None = None) -> None:
        config = config or PerceptualDistanceConfig()
        loss = Perceptual(PerceptualConfig(network=config.network, weights=config.weights, layers=config.layers))
        self.network, self.layers = loss.network, loss.layers
        super().__init__(config, f"perceptual_{config.network}")

    def values(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the distance of each pair, (B,) float32."""
        self.network.to(pixels.device)
        pair = round_pixels(pixels), round_pixels(reconstruction)
        with torch.autocast(pixels.device.type, enabled=False):
            return perceptual_distance(self.network, *pair, self.layers, self.config.min_size)
