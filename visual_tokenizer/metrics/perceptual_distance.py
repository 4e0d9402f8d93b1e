"""Perceptual distance of reconstructions in a frozen network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Len
from torch import Tensor

from visual_tokenizer.fields.ranges import Different
from visual_tokenizer.losses.perceptual import Perceptual, PerceptualConfig, perceptual_distance
from visual_tokenizer.metrics.base import MetricConfig, PictureMean, round_pixels


@dataclass(kw_only=True)
class PerceptualDistanceConfig(MetricConfig):
    """Configures the perceptual distance."""

    renamed: ClassVar[Mapping[str, str | None]] = {"network_weights": "weights"}

    network: str = "efficientnet_lite0"
    """Frozen network: a file of `visual_tokenizer/backbones`."""
    weights: str | None = None
    """State dict of the network (`transformers_vision`: folder or name); null: that of the installed package."""
    layers: Annotated[list[Annotated[int, Ge(0)]], Len(1), Different()] | None = None
    """Levels of the network to compare, 0 the finest; null: all."""
    min_size: Annotated[int, Ge(32)] = 64
    """Pixels of the shorter side; smaller pictures are enlarged to it, others stay."""

    def loss(self) -> PerceptualConfig:
        """Return the config of the loss of the same distance."""
        return PerceptualConfig(network=self.network, weights=self.weights, layers=self.layers, min_size=self.min_size)


class PerceptualDistance(PictureMean):
    """Mean over pictures of the perceptual loss's distance, as `perceptual_<network>`; not LPIPS.

    Protocol: both clamped to [-1, 1] and rounded to 8-bit levels; float32, also under autocast.

    Raises:
        MissingWeightsError: the network's weights are not on this machine.
    """

    Config = PerceptualDistanceConfig

    def __init__(self, config: PerceptualDistanceConfig | None = None) -> None:
        config = config or PerceptualDistanceConfig()
        loss = Perceptual(config.loss())
        self.network, self.layers = loss.network, loss.layers
        super().__init__(config, f"perceptual_{config.network}")

    def weights_digest(self) -> str:
        """Return the digest of the network's weights."""
        return self.network.weights_digest

    def values(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        """Return the distance of each pair, (B,) float32."""
        self.network.to(pixels.device)
        pair = round_pixels(pixels), round_pixels(reconstruction)
        with torch.autocast(pixels.device.type, enabled=False):
            return perceptual_distance(self.network, *pair, self.layers, self.config.min_size)
