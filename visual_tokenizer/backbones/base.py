"""What every frozen picture network has in common: losses and metrics look at pictures through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.registry import Family, PartConfig


class MissingWeightsError(FileNotFoundError):
    """The weights of a frozen network are not on this machine; the message says what to install."""


@dataclass(kw_only=True)
class BackboneConfig(PartConfig, package="visual_tokenizer.backbones"):
    """Fields that every frozen network has."""

    weights: str | None = None
    """Path of a state dict file; without it the weights of the installed package are taken."""


class Backbone(nn.Module):
    """A pretrained picture network that never learns and always runs in evaluation mode.

    Gradients pass through it to the pixels. Shapes: B pictures, H x W pixels, L levels.
    """

    Config: ClassVar[type[BackboneConfig]]
    feature_dims: ClassVar[tuple[int, ...]]
    """Channels of each level of `features`, finest first; its length is L."""
    embedding_dim: ClassVar[int]
    """Length of an `embedding`."""
    embedding_size: ClassVar[int]
    """Shorter side, in pixels, to which `embedding` brings a picture unless told otherwise."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config: Any = config
        super().train(False)

    def train(self, mode: bool = True) -> Backbone:
        """Stay in evaluation mode whatever `mode` says."""
        return super().train(False)

    def features(self, pixels: Tensor, levels: int | None = None) -> list[Tensor]:
        """Return the first `levels` (default all L) feature maps of `pixels`, finest first.

        Args:
            pixels: (B, 3, H, W) float in [-1, 1]; normalised inside.
            levels: how many to compute, 1 to L; deeper ones cost nothing when not asked for.
        """
        raise NotImplementedError

    def embedding(self, pixels: Tensor, size: int | None = None) -> Tensor:
        """Return one vector a picture, (B, embedding_dim).

        Args:
            pixels: (B, 3, H, W) float in [-1, 1]; normalised inside.
            size: pixels of the shorter side after bilinear resizing; default `embedding_size`.
        """
        raise NotImplementedError


def resize_shorter_side(pixels: Tensor, size: int) -> Tensor:
    """Resize (B, 3, H, W) pixels bilinearly (antialiased when it shrinks) so that min(H, W) is `size`."""
    height, width = pixels.shape[-2:]
    shorter = min(height, width)
    if shorter == size:
        return pixels
    target = (round(height * size / shorter), round(width * size / shorter))
    return F.interpolate(pixels, target, mode="bilinear", align_corners=False, antialias=shorter > size)


def load_backbone(name: str, weights: str | None = None) -> Any:
    """Build the frozen network called `name` (the stem of its file) from `weights` or its package.

    Raises:
        UnknownPartError: no such network; the message lists what there is.
        MissingWeightsError: the weights are not installed, or `weights` is not a file.
    """
    return Family("visual_tokenizer.backbones").build({"type": name, "weights": weights})


def check_pixels(pixels: Tensor) -> None:
    """Raise ValueError unless `pixels` is (B, 3, H, W) and floating point."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise ValueError(f"pixels must be float (B, 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}")


def check_layers(layers: Sequence[int], network: Backbone) -> None:
    """Raise ValueError unless `layers` names at least one level of `network`, each once."""
    count = len(network.feature_dims)
    if not layers or len(set(layers)) != len(layers) or not all(0 <= layer < count for layer in layers):
        raise ValueError(f"layers must be different numbers in 0..{count - 1}, at least one, got {list(layers)}")


PART = Backbone
