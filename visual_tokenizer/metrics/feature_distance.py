"""Fréchet distance between pictures and their reconstructions in the embedding of any frozen network.

Paper: GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al.,
2017), arXiv:1706.08500, eq. 6; the network is another one than theirs, so the value is never called FID.
"""

from __future__ import annotations

from dataclasses import dataclass

from visual_tokenizer.backbones.base import Backbone, NetworkFields, load_backbone
from visual_tokenizer.metrics.base import FrechetMetric, MetricConfig


@dataclass(kw_only=True)
class FeatureDistanceConfig(NetworkFields, MetricConfig):
    """Configures the Fréchet distance."""


class FeatureDistance(FrechetMetric):
    """Fréchet distance of `network.embedding`, as `FD-<network>`.

    `network`, a frozen one, takes the place of the config's.
    """

    Config = FeatureDistanceConfig

    def __init__(self, config: FeatureDistanceConfig | None = None, network: Backbone | None = None) -> None:
        config = config or FeatureDistanceConfig()
        network = network or load_backbone(config.network, config.weights)
        super().__init__(config, network, f"FD-{network.config.type}")
