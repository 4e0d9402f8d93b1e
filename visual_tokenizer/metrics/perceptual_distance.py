"""Perceptual distance of reconstructions in a frozen network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visual_tokenizer.backbones.base import Backbone, check_layers, load_backbone
from visual_tokenizer.losses.perceptual import perceptual_distance
from visual_tokenizer.metrics.base import PictureMean, round_pixels


class PerceptualDistance(PictureMean):
    """Mean over pictures of the perceptual loss's distance, as `perceptual_<network>`; not LPIPS.

    Protocol: both clamped to [-1, 1] and rounded to 8-bit levels; float32, also under autocast.

    Args:
        network: a frozen network, moved to the pictures' device when needed; default EfficientNet-Lite0.
        layers: levels to compare, 0 the finest; default all.
        min_size: pictures whose shorter side is below this many pixels are enlarged to it.

    Raises:
        MissingWeightsError: no network is given, and the weights of EfficientNet-Lite0 are not installed.
    """

    def __init__(
        self, network: Backbone | None = None, layers: Sequence[int] | None = None, min_size: int = 64
    ) -> None:
        self.network = network or load_backbone("efficientnet_lite0")
        self.layers = list(range(len(self.network.feature_dims)) if layers is None else layers)
        check_layers(self.layers, self.network)
        self.min_size = min_size
        super().__init__(f"perceptual_{self.network.config.type}")

    def values(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the distance of each pair, (B,) float32."""
        self.network.to(pixels.device)
        with torch.autocast(pixels.device.type, enabled=False):
            return perceptual_distance(
                self.network, round_pixels(pixels), round_pixels(reconstruction), self.layers, self.min_size
            )
