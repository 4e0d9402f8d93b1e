"""3-D convolutions whose output is the input divided, or multiplied, by the stride; not causal.

Paper: VideoGPT: Video Generation using VQ-VAE and Transformers (Yan et al., 2021), arXiv:2104.10157, section 3.1; with
`replicate`, Long Video Generation with Time-Agnostic VQGAN and Time-Sensitive Transformer (Ge et al., 2022),
arXiv:2204.03638, section 3.2. Where the padding can't be even there is more of it in front.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.errors import UserError

PaddingMode = Literal["constant", "replicate"]


def _padding(kernel: int, stride: tuple[int, int, int]) -> list[int]:
    """Return the padding of width, height and time, before and after, as `F.pad` takes it."""
    sides = []
    for step in reversed(stride):
        total = kernel - step
        sides += [total - total // 2, total // 2]
    return sides


class SameConv3d(nn.Module):
    """(B, in, T, H, W) → (B, out, T/t, H/h, W/w) for a stride (t, h, w) that divides the sides."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: tuple[int, int, int] = (1, 1, 1),
        *,
        padding: PaddingMode = "constant",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.sides, self.padding = _padding(kernel, stride), padding
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(F.pad(hidden, self.sides, mode=self.padding))


class SameConvTranspose3d(nn.Module):
    """(B, in, T, H, W) → (B, out, T·t, H·h, W·w) for a stride (t, h, w)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: tuple[int, int, int],
        *,
        padding: PaddingMode = "constant",
    ) -> None:
        super().__init__()
        self.sides, self.padding = _padding(kernel, stride), padding
        self.conv = nn.ConvTranspose3d(in_channels, out_channels, kernel, stride, padding=kernel - 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(F.pad(hidden, self.sides, mode=self.padding))


def strides_of(downsampling: list[int]) -> list[tuple[int, int, int]]:
    """Divide [time, height, width], powers of two, into strides of 2 or 1: [2, 4, 4] → (2, 2, 2), (1, 2, 2)."""
    halvings = [int(math.log2(factor)) for factor in downsampling]
    strides = []
    for level in range(max(halvings)):
        time, height, width = (2 if level < times else 1 for times in halvings)
        strides.append((time, height, width))
    return strides


def check_downsampling(downsampling: list[int]) -> None:
    """Raise where it is not three powers of two, one of them 2 or more.

    Raises:
        ValueError: it is not.
    """
    if len(downsampling) != 3 or any(factor < 1 or factor & (factor - 1) for factor in downsampling):
        raise UserError(f"downsampling must be [time, height, width], each a power of two, got {downsampling}")
    if max(downsampling) < 2:
        raise UserError(f"downsampling must be 2 or more in one direction, got {downsampling}")
