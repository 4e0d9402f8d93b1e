"""The fields and the residual block of TATS's 3-D VQGAN.

Paper: Long Video Generation with Time-Agnostic VQGAN and Time-Sensitive Transformer (Ge et al., 2022),
arXiv:2204.03638, section 3.2 and appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Len
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.convolution import group_norm
from visual_tokenizer.layers.same_convolution import SameConv3d, StridedClipShape


@dataclass(kw_only=True)
class TATSShape(StridedClipShape):
    """Widths and strides of TATS's network."""

    channels: Annotated[int, Ge(1)] = 32
    """Channels at full resolution; they double at each halving. The widths after a halving are multiples of
    `groups`."""

    downsampling: Annotated[list[Annotated[int, Ge(1)]], Len(3, 3)] = field(default_factory=lambda: [4, 8, 8])

    groups: Annotated[int, Ge(1)] = 32
    """Groups of the group normalisation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if 2 * self.channels % self.groups:
            raise UserError(f"groups must divide twice the channels ({2 * self.channels}), got {self.groups}")


class ReplicateResidualBlock(nn.Module):
    """Group norm, SiLU, 3 × 3 × 3 convolution padded with copies of the border, twice, beside the identity."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels, groups)
        self.conv1 = SameConv3d(channels, channels, 3, padding="replicate")
        self.norm2 = group_norm(channels, groups)
        self.conv2 = SameConv3d(channels, channels, 3, padding="replicate")

    def forward(self, hidden: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden)))
        return hidden + self.conv2(F.silu(self.norm2(residual)))
