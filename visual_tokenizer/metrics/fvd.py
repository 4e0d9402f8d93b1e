"""FVD: Fréchet distance between sets of clips in the embedding of I3D.

Paper: Towards Accurate Generative Models of Video: A New Metric & Challenges (Unterthiner et al., 2018),
arXiv:1812.01717, section 3. Between clips and their reconstructions it is what papers call rFVD.
"""

from __future__ import annotations

from dataclasses import dataclass

from visual_tokenizer.backbones.base import WeightsFields, load_backbone
from visual_tokenizer.metrics.base import FrechetMetric, MetricConfig


@dataclass(kw_only=True)
class FVDConfig(WeightsFields, MetricConfig):
    """Configures FVD; the network cannot be chosen, since another one's distance is not FVD."""

    weights: str | None = None
    """State dict of I3D in the layout of pytorch-i3d; null: `rgb_imagenet.pt` in torch.hub's folder."""


class FVD(FrechetMetric):
    """Fréchet distance of I3D's mean logits (frames resized to 224 px as TensorFlow 1 does), as `FVD`.

    Clips of 9 frames or more; the value depends on their number of frames, which is part of the protocol of papers
    (16), and on the number of clips (2,048).
    """

    Config = FVDConfig

    def __init__(self, config: FVDConfig | None = None) -> None:
        config = config or FVDConfig()
        super().__init__(config, load_backbone("i3d", config.weights), "FVD")
