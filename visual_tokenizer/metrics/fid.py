"""FID: Fréchet distance in the embedding of TensorFlow's Inception of 2015.

Paper: GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium (Heusel et al.,
2017), arXiv:1706.08500, eq. 6. Between pictures and their reconstructions it is what papers call rFID.
"""

from __future__ import annotations

from dataclasses import dataclass

from visual_tokenizer.backbones.base import WeightsFields, load_backbone
from visual_tokenizer.metrics.base import FrechetMetric, MetricConfig


@dataclass(kw_only=True)
class FIDConfig(WeightsFields, MetricConfig):
    """Configures FID; the network cannot be chosen, since another one's distance is not FID."""

    weights: str | None = None
    """The published state dict of the Inception of 2015-12-05; null: the one in torch.hub's folder."""


class FID(FrechetMetric):
    """Fréchet distance of Inception's `pool_3` (pictures resized to 299 px as TensorFlow 1 does), as `FID`.

    Papers use 50,000 pictures; at smaller numbers it is far larger.
    """

    Config = FIDConfig

    def __init__(self, config: FIDConfig | None = None) -> None:
        config = config or FIDConfig()
        super().__init__(config, load_backbone("inception_v3", config.weights), "FID")
