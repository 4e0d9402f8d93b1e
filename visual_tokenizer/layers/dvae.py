"""What the encoder and the decoder of DALL·E's dVAE share: fields and bottleneck blocks.

Paper: Zero-Shot Text-to-Image Generation (Ramesh et al., 2021), arXiv:2102.12092, appendix A.1. Modules are named as in
the published weights, so that these map one to one (`w` → `weight`, `b` → `bias`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

from visual_tokenizer.fields.ranges import Section

GROUPS = 4
"""Levels of the network; between them the resolution halves, so that a token stands for 8 × 8 pixels."""

DOWNSAMPLING = 2 ** (GROUPS - 1)


@dataclass(kw_only=True)
class DVAEShape(Section):
    """Widths and depths of the dVAE's convolutional network."""

    channels: Annotated[int, Ge(4), MultipleOf(4)] = 256
    """Channels at full resolution, 8 times as many at the coarsest of the four levels."""

    blocks_per_group: Annotated[int, Ge(1)] = 2
    """Bottleneck blocks of each of the four levels."""


def convolution(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """Return a convolution that keeps the size, drawn with variance 1 / inputs, without offset."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.normal_(conv.weight, std=1 / math.sqrt(in_channels * kernel_size**2))
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class DVAEBlock(nn.Module):
    """Four times ReLU and convolution, a quarter as wide inside, with a small gain beside a (projected) identity.

    Args:
        in_channels: of (B, in, H, W).
        out_channels: of (B, out, H, W); a multiple of 4.
        kernel_sizes: sides of the four convolutions.
        layers: number n of such blocks in the whole network; the gain is 1 / n².
    """

    def __init__(self, in_channels: int, out_channels: int, *, kernel_sizes: Sequence[int], layers: int) -> None:
        super().__init__()
        self.gain = 1 / layers**2
        inner = out_channels // 4
        widths = [in_channels, inner, inner, inner, out_channels]
        self.id_path = nn.Identity() if in_channels == out_channels else convolution(in_channels, out_channels, 1)
        path: OrderedDict[str, nn.Module] = OrderedDict()
        for number, side in enumerate(kernel_sizes, start=1):
            path[f"relu_{number}"] = nn.ReLU()
            path[f"conv_{number}"] = convolution(widths[number - 1], widths[number], side)
        self.res_path = nn.Sequential(path)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.id_path(hidden) + self.gain * self.res_path(hidden)


def group(
    in_channels: int, out_channels: int, shape: DVAEShape, kernel_sizes: Sequence[int], resize: nn.Module | None
) -> nn.Sequential:
    """Return one level: its blocks, then `resize`, which has no weights."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for number in range(1, shape.blocks_per_group + 1):
        entering = in_channels if number == 1 else out_channels
        parts[f"block_{number}"] = DVAEBlock(
            entering, out_channels, kernel_sizes=kernel_sizes, layers=GROUPS * shape.blocks_per_group
        )
    if resize is not None:
        parts["resize"] = resize
    return nn.Sequential(parts)
