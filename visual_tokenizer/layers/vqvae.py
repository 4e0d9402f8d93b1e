"""What the encoder and the decoder of VQ-VAE share: fields and residual blocks.

Paper: Neural Discrete Representation Learning (van den Oord et al., 2017), arXiv:1711.00937, section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, MultipleOf
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.fields.ranges import Section


@dataclass(kw_only=True)
class VQVAEShape(Section):
    """Widths and depths of VQ-VAE's convolutional network."""

    channels: Annotated[int, Ge(2), MultipleOf(2)] = 128
    """Channels of the feature maps, half of it at the finest level."""

    residual_channels: Annotated[int, Ge(1)] = 32
    """Channels inside a residual block."""

    residual_blocks: Annotated[int, Ge(0)] = 2
    """Residual blocks at the coarsest level."""

    halvings: Annotated[int, Ge(1)] = 2
    """Strided convolutions, each of which halves the resolution."""

    @property
    def level_channels(self) -> list[int]:
        """Channels after each strided convolution, fine to coarse."""
        return [self.channels // 2] + [self.channels] * (self.halvings - 1)


class ResidualStack(nn.Module):
    """Blocks of ReLU, 3 × 3, ReLU, 1 × 1 convolution beside the identity, and a last ReLU: (B, C, H, W) → the same."""

    def __init__(self, channels: int, residual_channels: int, blocks: int) -> None:
        super().__init__()
        self.spatial = nn.ModuleList(nn.Conv2d(channels, residual_channels, 3, padding=1) for _ in range(blocks))
        self.pointwise = nn.ModuleList(nn.Conv2d(residual_channels, channels, 1) for _ in range(blocks))

    def forward(self, hidden: Tensor) -> Tensor:
        for spatial, pointwise in zip(self.spatial, self.pointwise, strict=True):
            # Not in place: the sum still needs what enters.
            hidden = hidden + pointwise(F.relu(spatial(F.relu(hidden))))
        return F.relu(hidden)
