"""Distance between pixels and their reconstruction in the features of a frozen network.

Paper: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018),
arXiv:1801.03924, eq. 1: features are normalised to unit length over channels (eps 1e-10), their squared
difference is weighted by channel, averaged over positions and summed over layers.

What differs: no weights were ever learned for the channels of these networks, so each is 1 / (2 x layers). A
layer's term is then 1 - cosine at each position, and the sum lies in [0, 2], of LPIPS's magnitude: with
EfficientNet-Lite0 at 256 px, photographs differ by 0.01 from themselves under noise of one level, 0.25 under
a Gaussian blur of 2 px and 0.9 from one another. These are still not LPIPS values and must not be reported
under that name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Len
from torch import Tensor

from visual_tokenizer.backbones.base import (
    Backbone,
    NetworkFields,
    NetworkHolder,
    check_layers,
    frames_as_pictures,
    load_backbone,
    require_pictures,
    resize_shorter_side,
    squared_differences,
)
from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Different
from visual_tokenizer.losses.base import Loss, LossConfig
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.teacher import Teacher


def perceptual_distance(
    network: Backbone, pixels: Tensor, reconstruction: Tensor, layers: Sequence[int], min_size: int
) -> Tensor:
    """Return the distance of each pair of pictures, (B,) float32 in [0, 2]; 0 for identical ones.

    Gradients reach `reconstruction` only.

    Args:
        network: a frozen network; it must be on the device of the pictures.
        pixels: (B, 3, H, W) in [-1, 1], the reference.
        reconstruction: (B, 3, H, W), about [-1, 1].
        layers: levels of `network.features` to compare, 0 the finest.
        min_size: pictures whose shorter side is below this many pixels are enlarged to it (bilinear).
    """
    size = max(min_size, min(pixels.shape[-2:]))
    resized = resize_shorter_side(pixels, size), resize_shorter_side(reconstruction, size)
    terms = [maps.sum(1).mean((1, 2)) for maps in squared_differences(network, *resized, layers)]
    return torch.stack(terms).sum(0) / (2 * len(layers))


@dataclass(kw_only=True)
class PerceptualFields(NetworkFields):
    """Fields of the distance."""

    layers: Annotated[list[Annotated[int, Ge(0)]], Len(1), Different()] | None = None
    """Levels of the network to compare, 0 the finest; null: all."""
    min_size: Annotated[int, Ge(32)] = 64
    """Pixels of the shorter side; smaller pictures are enlarged to it, others stay."""


@dataclass(kw_only=True)
class PerceptualConfig(PerceptualFields, LossConfig):
    """Configures the perceptual loss."""

    network: str | None = "efficientnet_lite0"  # type: ignore[assignment]  # wider than the metric's
    """Frozen network: a file of `visual_tokenizer/backbones`; null: the recipe's teacher."""

    @property
    def wants_teacher(self) -> bool:
        return self.network is None


class Perceptual(NetworkHolder, Loss):
    """Perceptual distance in a frozen network, averaged over pictures or the frames of clips."""

    Config = PerceptualConfig

    def __init__(self, config: PerceptualConfig, teacher: Teacher | None = None) -> None:
        super().__init__(config)
        if teacher is not None:
            network = teacher.network
        elif config.network is not None:
            network = load_backbone(config.network, config.weights)
        else:
            raise UserError("network must name a network where the recipe has no teacher, got null")
        require_pictures(network)
        self.layers = list(range(len(network.feature_dims))) if config.layers is None else config.layers
        check_layers(self.layers, network)
        self.hold(network)

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean distance, a float32 scalar in [0, 2]; gradients reach `output.pixels` only."""
        pair = frames_as_pictures(batch["pixels"]), frames_as_pictures(output.pixels)
        return perceptual_distance(self.network, *pair, self.layers, self.config.min_size).mean()
