"""What every frozen picture network has in common: losses and metrics look at pictures through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.errors import MissingWeightsError as MissingWeightsError
from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.registry import Family, PartConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(kw_only=True)
class BackboneConfig(PartConfig, package="visual_tokenizer.backbones"):
    """Fields that every frozen network has."""

    weights: str | None = None
    """Path of a state dict (.pth, .pt or .safetensors; `transformers_vision`: folder or hub name); null: the
    weights of an installed package or of torch.hub's folder, where there are any."""


@dataclass(kw_only=True)
class WeightsFields(Section):
    """Fields of a part that looks through one network."""

    renamed: ClassVar[Mapping[str, str | None]] = {"network_weights": "weights"}

    weights: str | None = None
    """State dict of the network (`transformers_vision`: folder or name); null: that of the installed package."""


@dataclass(kw_only=True)
class NetworkFields(WeightsFields):
    """Fields of a part that looks through a network of choice."""

    network: str = "efficientnet_lite0"
    """Frozen network: a file of `visual_tokenizer/backbones`."""


class Backbone(nn.Module):
    """A pretrained picture network that never learns and always runs in evaluation mode.

    Gradients pass through it to the pixels. Shapes: B pictures, H x W pixels, L levels. A network of clips
    (`takes_clips`) takes (B, 3, T, H, W) wherever (B, 3, H, W) is said here.
    """

    Config: ClassVar[type[BackboneConfig]]
    takes_clips: ClassVar[bool] = False
    """Whether the network looks at clips and not at pictures."""
    feature_dims: tuple[int, ...]
    """Channels of each level of `features`, finest first; its length is L."""
    embedding_dim: int
    """Length of an `embedding`."""
    embedding_size: int
    """Shorter side, in pixels, to which `embedding` brings a picture unless told otherwise."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.weights_digest = ""
        """What tells the weights from others: a hash of their file."""
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


class NetworkHolder(nn.Module):
    """A module with a frozen network that follows `.to(...)` but is in neither `parameters()` nor `state_dict()`.

    So the network is not trained, saved, sharded or averaged.
    """

    def hold(self, network: Backbone) -> None:
        """Keep `network`; call it once, after `nn.Module.__init__`."""
        # A tuple hides the network from nn.Module's bookkeeping; `_apply` below moves it.
        self._frozen = (network,)

    @property
    def network(self) -> Backbone:
        """The frozen network."""
        return self._frozen[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)


def run_stages(stages: Iterable[Iterable[nn.Module]], maps: Tensor) -> list[Tensor]:
    """Run layers one after another and return what each stage of them ends in."""
    found = []
    for stage in stages:
        for layer in stage:
            maps = layer(maps)
        found.append(maps)
    return found


def resize_shorter_side(pixels: Tensor, size: int) -> Tensor:
    """Resize (B, 3, H, W) pixels bilinearly (antialiased when it shrinks) so that min(H, W) is `size`."""
    height, width = pixels.shape[-2:]
    shorter = min(height, width)
    if shorter == size:
        return pixels
    target = (round(height * size / shorter), round(width * size / shorter))
    return F.interpolate(pixels, target, mode="bilinear", align_corners=False, antialias=shorter > size)


def resize_like_tensorflow(pixels: Tensor, size: int) -> Tensor:
    """Resize (B, 3, H, W) to (B, 3, size, size) as TensorFlow 1's `resize_bilinear` does.

    Output position i looks at input position i x length / size (no half-pixel centres), and there is no
    antialiasing: the networks behind FID and FVD were published with it.
    """
    for dim in (-2, -1):
        length = pixels.shape[dim]
        places = torch.arange(size, device=pixels.device, dtype=torch.float32) * (length / size)
        below = places.floor().long().clamp(max=length - 1)
        above = (below + 1).clamp(max=length - 1)
        share = (places - below).to(pixels.dtype)
        share = share[:, None] if dim == -2 else share
        low, high = pixels.index_select(dim, below), pixels.index_select(dim, above)
        pixels = low + (high - low) * share
    return pixels


def standardise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return (x - mean) / std for each of the three channels of (B, 3, H, W) `pixels`, x the same level in [0, 1]."""
    scale = [1 / (2 * spread) for spread in std]
    shift = [(0.5 - centre) / spread for centre, spread in zip(mean, std, strict=True)]
    return pixels * pixels.new_tensor(scale).view(3, 1, 1) + pixels.new_tensor(shift).view(3, 1, 1)


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
        raise UserError(f"pixels must be float (B, 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}")


def check_clips(pixels: Tensor) -> None:
    """Raise UserError unless `pixels` is (B, 3, T, H, W) and floating point."""
    if pixels.ndim != 5 or pixels.shape[1] != 3 or not pixels.is_floating_point():
        raise UserError(f"clips must be float (B, 3, T, H, W), got {pixels.dtype} {tuple(pixels.shape)}")


def frames_as_pictures(pixels: Tensor) -> Tensor:
    """Return the frames of (B, 3, T, H, W) clips as (B T, 3, H, W) pictures; (B, 3, H, W) stays as it is."""
    return pixels.transpose(1, 2).flatten(0, 1) if pixels.ndim == 5 else pixels


def require_pictures(network: Backbone) -> None:
    """Raise ValueError where `network` looks at clips, for a measure of pictures."""
    if network.takes_clips:
        raise UserError(f"network must look at pictures, but {network.config.type} looks at clips")


def normalise_channels(maps: Tensor, eps: float = 1e-10) -> Tensor:
    """Return (B, C, H, W) `maps` in float32, of unit length over C; all-zero positions stay zero."""
    maps = maps.float()
    return maps / (torch.linalg.vector_norm(maps, dim=1, keepdim=True) + eps)


def squared_differences(
    network: Backbone, pixels: Tensor, reconstruction: Tensor, layers: Sequence[int]
) -> list[Tensor]:
    """Return the squared difference of normalised features at each of `layers`, (B, C_l, H_l, W_l) float32.

    Source: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018),
    arXiv:1801.03924, eq. 1, before weights and means. Gradients reach `reconstruction` only.
    """
    levels = max(layers) + 1
    with torch.no_grad():
        wanted = network.features(pixels, levels)
    found = network.features(reconstruction, levels)
    return [(normalise_channels(found[layer]) - normalise_channels(wanted[layer])).square() for layer in layers]


def check_layers(layers: Sequence[int], network: Backbone) -> None:
    """Raise ValueError unless `layers` names at least one level of `network`, each once."""
    count = len(network.feature_dims)
    if not layers or len(set(layers)) != len(layers) or not all(0 <= layer < count for layer in layers):
        raise UserError(f"layers must be different numbers in 0..{count - 1}, at least one, got {list(layers)}")


PART = Backbone
