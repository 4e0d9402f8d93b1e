"""3-D convolutions whose output is the input divided, or multiplied, by the stride; not causal.

Paper: VideoGPT: Video Generation using VQ-VAE and Transformers (Yan et al., 2021), arXiv:2104.10157, section 3.1; with
`replicate`, Long Video Generation with Time-Agnostic VQGAN and Time-Sensitive Transformer (Ge et al., 2022),
arXiv:2204.03638, section 3.2. Where the padding can't be even there is more of it in front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Len
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Section

PaddingMode = Literal["constant", "replicate"]


@dataclass(kw_only=True)
class StridedClipShape(Section):
    """What one token of a network that is not causal stands for."""

    downsampling: Annotated[list[Annotated[int, Ge(1)]], Len(3, 3)] = field(default_factory=lambda: [4, 4, 4])
    """Frames, height and width in pixels that one token stands for; powers of two, one of them 2 or more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(factor & (factor - 1) for factor in self.downsampling) or max(self.downsampling) < 2:
            raise UserError(f"downsampling must be powers of two, one of them 2 or more, got {self.downsampling}")


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
