"""LPIPS of reconstructions.

Paper: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018), arXiv:1801.03924.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visual_tokenizer.losses.lpips import Lpips, LpipsConfig, LpipsFields
from visual_tokenizer.metrics.base import MetricConfig, PictureMean, round_pixels


@dataclass(kw_only=True)
class LPIPSMetricConfig(LpipsFields, MetricConfig):
    """Configures LPIPS."""


class LPIPSMetric(PictureMean):
    """Mean over pictures of LPIPS on VGG-16, version 0.1, as `lpips_vgg`.

    Protocol: both clamped to [-1, 1] and rounded to 8-bit levels; pictures are not resized; float32, also under
    autocast.
    """

    Config = LPIPSMetricConfig

    def __init__(self, config: LPIPSMetricConfig | None = None) -> None:
        config = config or LPIPSMetricConfig()
        super().__init__(config, "lpips_vgg")
        self.loss = Lpips(LpipsConfig(weights=config.weights, heads=config.heads))

    def weights_digest(self) -> str:
        """Return the digests of VGG-16 and of the heads."""
        return self.loss.weights_digest

    def values(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the LPIPS of each pair, (B,) float32."""
        self.loss.to(pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):
            return self.loss.distance(round_pixels(pixels), round_pixels(reconstruction))
