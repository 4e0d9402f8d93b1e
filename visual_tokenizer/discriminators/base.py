"""What every discriminator has in common, and the stack of strided convolutions that the PatchGANs are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.codebooks.distributed import average_over_ranks, is_distributed
from visual_tokenizer.registry import ConfigError, PartConfig

Norm = Literal["batch", "group", "none"]


@dataclass(kw_only=True)
class DiscriminatorConfig(PartConfig, package="visual_tokenizer.discriminators"):
    """Fields that every discriminator has (none)."""


class Discriminator(nn.Module):
    """Gives logits: high for real pictures, low for reconstructions.

    Args:
        image_size: side of the pictures in pixels.
        num_frames: frames of a clip; 0 for pictures.

    Raises:
        ConfigError: it judges clips and there are pictures, or the other way round.
    """

    Config: ClassVar[type[DiscriminatorConfig]]
    takes_video: ClassVar[bool] = False
    """Whether it judges clips (B, 3, T, H, W) and not pictures (B, 3, H, W)."""

    judges: int = 1
    """Length of what `forward` returns."""

    def __init__(self, config: DiscriminatorConfig, *, image_size: int, num_frames: int = 0) -> None:
        super().__init__()
        self.config: Any = config
        if self.takes_video != (num_frames > 0):
            takes, has = ("clips", "pictures") if self.takes_video else ("pictures", f"clips of {num_frames} frames")
            raise ConfigError(f"discriminator {config.type} judges {takes}, and num_frames = {num_frames} gives {has}")

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the logits of each judge, (B, …), of (B, 3, [T,] H, W) pixels in about [-1, 1].

        Judges count alike, however many logits each gives.
        """
        raise NotImplementedError


class BatchNorm(nn.Module):
    """Batch normalisation by the statistics of all ranks' batches: (B, C, …) → the same shape.

    A discriminator is only ever used in training, so there are no running averages: nothing differs between ranks, and
    the pass for the generator leaves no trace. Paper: Batch Normalization (Ioffe & Szegedy, 2015), arXiv:1502.03167.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels).normal_(1, 0.02))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden: Tensor) -> Tensor:
        if not is_distributed():
            return F.batch_norm(hidden, None, None, self.weight, self.bias, training=True, eps=self.eps)
        with torch.autocast(hidden.device.type, enabled=False):
            exact = hidden.float()
            places = [0, *range(2, hidden.ndim)]
            own_mean = exact.mean(places)
            own_variance = exact.var(places, correction=0)
            moments = average_over_ranks(torch.stack([own_mean, own_variance, own_mean.square()]))
            mean, within, square = moments.unbind()
            scale = self.weight * (within + (square - mean.square()).clamp_min(0) + self.eps).rsqrt()
            shift = self.bias - mean * scale
            shape = (1, -1, *[1] * (hidden.ndim - 2))
            return (exact * scale.view(shape) + shift.view(shape)).to(hidden.dtype)


def normalisation(norm: Norm, channels: int) -> nn.Module:
    """Return the layer that `norm` names."""
    if norm == "batch":
        return BatchNorm(channels)
    return nn.GroupNorm(math.gcd(32, channels), channels) if norm == "group" else nn.Identity()


@dataclass(kw_only=True)
class PatchStackConfig(DiscriminatorConfig):
    """Fields that the PatchGANs share."""

    channels: Annotated[int, Ge(1)] = 64
    """Channels of the first convolution. They double with each layer, up to eight times as many."""

    layers: Annotated[int, Ge(1)] = 3
    """Convolutions of stride 2. Three see patches of 70 pixels."""

    norm: Norm = "batch"
    """batch (the published one; its statistics are taken over all ranks, but apart for real and reconstructed
    pictures and for each accumulated pass), group (each picture by itself: the same whatever the ranks and passes) or
    none."""


def patch_stack(
    convolution: type[nn.Conv2d] | type[nn.Conv3d], config: PatchStackConfig, padding: int
) -> nn.Sequential:
    """Return PatchGAN's convolutions of side 4, with weights drawn from N(0, 0.02²) as published.

    Args:
        convolution: of two or three dimensions.
        config: channels, layers, norm.
        padding: on each side of each convolution.
    """
    widths = [config.channels * min(2**number, 8) for number in range(config.layers + 1)]
    stack: list[nn.Module] = [convolution(3, widths[0], 4, stride=2, padding=padding), nn.LeakyReLU(0.2)]
    for number in range(1, config.layers + 1):
        stack += [
            convolution(
                widths[number - 1],
                widths[number],
                4,
                stride=2 if number < config.layers else 1,
                padding=padding,
                bias=config.norm != "batch",  # which takes the mean away
            ),
            normalisation(config.norm, widths[number]),
            nn.LeakyReLU(0.2),
        ]
    stack.append(convolution(widths[-1], 1, 4, padding=padding))
    for module in stack:
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.normal_(module.weight, 0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return nn.Sequential(*stack)


def stack_side(side: int, layers: int, padding: int) -> int:
    """Return how many logits `patch_stack` gives along a side of `side` pixels or frames; below 1: too small."""
    for number in range(layers + 2):
        side = (side + 2 * padding - 4) // (2 if number < layers else 1) + 1
        if side < 1:
            return 0
    return side


PART = Discriminator
