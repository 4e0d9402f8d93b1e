"""LPIPS: the learned perceptual distance, on VGG-16.

Paper: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018), arXiv:1801.03924,
eq. 1, version 0.1 of the published weights: features of five ReLU layers, of unit length over channels (eps 1e-10),
squared difference weighted by a learned non-negative number a channel (the "heads"), averaged over positions, summed
over layers. The heads' training used dropout on the differences; nothing is dropped here, in training neither.

Two files are needed: torchvision's VGG-16, and the heads (`vgg.pth` of the package `lpips`, 7 kB, keys
`lin0.model.1.weight` … `lin4.model.1.weight`). The package itself need not be importable.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visual_tokenizer.backbones.base import (
    Backbone,
    MissingWeightsError,
    NetworkHolder,
    WeightsFields,
    frames_as_pictures,
    load_backbone,
    squared_differences,
)
from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.published_weights import file_digest, read_state_dict
from visual_tokenizer.losses.base import Loss, LossConfig
from visual_tokenizer.outputs import TokenizerOutput

MIN_SIZE = 16
"""Pixels of the shorter side at which VGG-16's last level still has a position."""


def find_heads(heads: str | None) -> Path:
    """Return the path of LPIPS's learned weights: `heads`, or those of the installed package `lpips`.

    Raises:
        MissingWeightsError: there are none; the message says what to install or name.
    """
    if heads is not None:
        if not Path(heads).is_file():
            raise MissingWeightsError(f"heads: no file {heads!r}; it must be vgg.pth of the package lpips (v0.1)")
        return Path(heads)
    package = importlib.util.find_spec("lpips")
    for folder in (package.submodule_search_locations or []) if package else []:
        path = Path(folder) / "weights" / "v0.1" / "vgg.pth"
        if path.is_file():
            return path
    raise MissingWeightsError(
        "the learned weights of LPIPS are missing: `pip install --no-deps lpips` brings them, or give the path of its "
        "weights/v0.1/vgg.pth as `heads`"
    )


def load_heads(path: Path, widths: Sequence[int]) -> list[Tensor]:
    """Return the weights of each level's channels, (1, C_l, 1, 1) float32.

    Raises:
        UserError: a level's weights are missing, of another width, or negative.
    """
    state = read_state_dict(path)
    found = []
    for level, width in enumerate(widths):
        key = f"lin{level}.model.1.weight"
        if key not in state or tuple(state[key].shape) != (1, width, 1, 1) or bool((state[key] < 0).any()):
            shape = tuple(state[key].shape) if key in state else "nothing"
            raise UserError(
                f"heads: {path} must hold {key} of shape (1, {width}, 1, 1), none below 0 (vgg.pth of the package "
                f"lpips, v0.1), got {shape}"
            )
        found.append(state[key].float())
    return found


def lpips_distance(network: Backbone, heads: Sequence[Tensor], pixels: Tensor, reconstruction: Tensor) -> Tensor:
    """Return the LPIPS of each pair of pictures, (B,) float32, 0 or more; gradients reach `reconstruction` only.

    Args:
        network: VGG-16, on the device of the pictures.
        heads: one (1, C_l, 1, 1) a level.
        pixels: (B, 3, H, W) in [-1, 1], H and W 16 or more; never resized.
        reconstruction: (B, 3, H, W), about [-1, 1].

    Raises:
        UserError: a side below 16 pixels.
    """
    if min(pixels.shape[-2:]) < MIN_SIZE:
        raise UserError(f"pixels must be at least {MIN_SIZE} x {MIN_SIZE} for LPIPS, got {tuple(pixels.shape[-2:])}")
    differences = squared_differences(network, pixels, reconstruction, range(len(heads)))
    terms = [(maps * head.to(maps)).sum(1).mean((1, 2)) for maps, head in zip(differences, heads, strict=True)]
    return torch.stack(terms).sum(0)


@dataclass(kw_only=True)
class LpipsFields(WeightsFields):
    """Where the weights of LPIPS are."""

    weights: str | None = None
    """State dict of torchvision's VGG-16; null: the one in torch.hub's folder."""
    heads: str | None = None
    """The learned weights, `vgg.pth` of the package lpips (v0.1); null: those of the installed package."""


@dataclass(kw_only=True)
class LpipsConfig(LpipsFields, LossConfig):
    """Configures LPIPS."""


class Lpips(NetworkHolder, Loss):
    """LPIPS on VGG-16, averaged over pictures or the frames of clips."""

    Config = LpipsConfig

    def __init__(self, config: LpipsConfig) -> None:
        super().__init__(config)
        path = find_heads(config.heads)
        network = load_backbone("vgg16", config.weights)
        self.heads = load_heads(path, network.feature_dims)
        self.weights_digest = f"{network.weights_digest}-{file_digest(path)}"
        self.hold(network)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.heads = [fn(head) for head in self.heads]
        return super()._apply(fn, recurse)

    def distance(self, pixels: Tensor, reconstruction: Tensor) -> Tensor:
        """Return `lpips_distance` of each pair of (B, 3, H, W) pictures, (B,)."""
        return lpips_distance(self.network, self.heads, pixels, reconstruction)

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean LPIPS, a float32 scalar; gradients reach `output.pixels` only."""
        return self.distance(frames_as_pictures(batch["pixels"]), frames_as_pictures(output.pixels)).mean()
