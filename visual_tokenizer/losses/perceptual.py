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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from visual_tokenizer.backbones.base import Backbone, check_layers, load_backbone, resize_shorter_side
from visual_tokenizer.losses.base import Loss, LossConfig
from visual_tokenizer.outputs import TokenizerOutput


def normalise_channels(maps: Tensor, eps: float = 1e-10) -> Tensor:
    """Return (B, C, H, W) `maps` in float32, of unit length over C; all-zero positions stay zero."""
    maps = maps.float()
    return maps / (torch.linalg.vector_norm(maps, dim=1, keepdim=True) + eps)


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
    levels = max(layers) + 1
    size = max(min_size, min(pixels.shape[-2:]))
    with torch.no_grad():
        wanted = network.features(resize_shorter_side(pixels, size), levels)
    found = network.features(resize_shorter_side(reconstruction, size), levels)
    terms = [
        (normalise_channels(found[layer]) - normalise_channels(wanted[layer])).square().sum(1).mean((1, 2))
        for layer in layers
    ]
    return torch.stack(terms).sum(0) / (2 * len(layers))


@dataclass(kw_only=True)
class PerceptualConfig(LossConfig):
    """Configures the perceptual loss."""

    network: str = "efficientnet_lite0"
    """Frozen network: a file of `visual_tokenizer/backbones`."""
    network_weights: str | None = None
    """Path of the network's state dict; without it, the installed package's."""
    layers: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    """Levels of the network to compare, different numbers from 0 (stride 2) to 4 (stride 32)."""
    min_size: int = 64
    """Pixels of the shorter side, 32 or more; smaller pictures are enlarged to it, others stay."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.layers or len(set(self.layers)) != len(self.layers) or min(self.layers) < 0:
            raise ValueError(f"layers must be different numbers from 0 up, at least one, got {self.layers}")
        if self.min_size < 32:
            raise ValueError(f"min_size must be 32 or more (the network's coarsest stride), got {self.min_size}")


class Perceptual(Loss):
    """Perceptual distance in a frozen network, averaged over pictures.

    The network follows `.to(...)` but is in neither `parameters()` nor `state_dict()`: it is not trained,
    saved, sharded or averaged.
    """

    Config = PerceptualConfig

    def __init__(self, config: PerceptualConfig) -> None:
        super().__init__(config)
        network = load_backbone(config.network, config.network_weights)
        check_layers(config.layers, network)
        # A tuple hides the network from nn.Module's bookkeeping; `_apply` below moves it.
        self._frozen = (network,)

    @property
    def network(self) -> Backbone:
        """The frozen network."""
        return self._frozen[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Perceptual:
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean distance, a float32 scalar in [0, 2]; gradients reach `output.pixels` only."""
        config = self.config
        return perceptual_distance(self.network, batch["pixels"], output.pixels, config.layers, config.min_size).mean()
