"""Axial attention over clips and the residual block that VideoGPT's VQ-VAE is made of.

Papers: Axial Attention in Multidimensional Transformers (Ho et al., 2019), arXiv:1912.12180; VideoGPT: Video Generation
using VQ-VAE and Transformers (Yan et al., 2021), arXiv:2104.10157, section 3.1 and figure 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, MultipleOf
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.layers.same_convolution import SameConv3d, StridedClipShape
from visual_tokenizer.layers.shape import check_heads


@dataclass(kw_only=True)
class AxialShape(StridedClipShape):
    """Widths and depths of VideoGPT's VQ-VAE."""

    width: Annotated[int, Ge(1), MultipleOf(2)] = 240
    """Channels throughout; a multiple of `heads`."""

    blocks: Annotated[int, Ge(1)] = 4
    """Attention residual blocks at the coarsest level."""

    heads: Annotated[int, Ge(1)] = 2
    """Attention heads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self)


class AxisAttention(nn.Module):
    """Multi-head self-attention along one axis of (B, T, H, W, C), each line by itself; no norm and no positions."""

    def __init__(self, width: int, heads: int, axis: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.axis = axis
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width, bias=bias)
        for layer in (self.query_key_value, self.projection):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, hidden: Tensor) -> Tensor:
        lines = self.query_key_value(hidden).movedim(self.axis, -2)
        heads = lines.unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        query, key, value = heads.flatten(1, 3).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.projection(mixed.unflatten(0, lines.shape[:3])).movedim(-2, self.axis)


class AxialAttention(nn.Module):
    """The sum of attention along width, height and time: (B, C, T, H, W) → (B, C, T, H, W).

    The projections have no bias: a batch normalisation after the residual sum takes any constant away.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.axes = nn.ModuleList(AxisAttention(width, heads, axis, bias=False) for axis in (3, 2, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        last = hidden.movedim(1, -1)
        along_width, along_height, along_time = (attention(last) for attention in self.axes)
        return (along_width + along_height + along_time).movedim(-1, 1)


class AxialResidualBlock(nn.Module):
    """Batch norm, ReLU, 3 × 3 × 3 and 1 × 1 × 1 convolution, axial attention, beside the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm3d(width),
            nn.ReLU(),
            SameConv3d(width, width // 2, 3, bias=False),
            nn.BatchNorm3d(width // 2),
            nn.ReLU(),
            SameConv3d(width // 2, width, 1, bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(),
            AxialAttention(width, heads),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.layers(hidden)


def axial_stack(shape: AxialShape) -> nn.Sequential:
    """Return the blocks and the batch norm and ReLU behind them."""
    blocks = [AxialResidualBlock(shape.width, shape.heads) for _ in range(shape.blocks)]
    return nn.Sequential(*blocks, nn.BatchNorm3d(shape.width), nn.ReLU())
