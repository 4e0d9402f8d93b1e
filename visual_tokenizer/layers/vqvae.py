"""What the encoder and the decoder of VQ-VAE share: fields and residual blocks.

Paper: Neural Discrete Representation Learning (van den Oord et al., 2017), arXiv:1711.00937, section 4.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class VQVAEShape:
    """Widths and depths of VQ-VAE's convolutional network."""

    channels: int = 128
    """Channels of the feature maps, half of it at the finest level; even, 2 or more."""

    residual_channels: int = 32
    """Channels inside a residual block; 1 or more."""

    residual_blocks: int = 2
    """Residual blocks at the coarsest level; 0 or more."""

    halvings: int = 2
    """Strided convolutions, each of which halves the resolution; 1 or more."""

    def __post_init__(self) -> None:
        if self.channels < 2 or self.channels % 2:
            raise UserError(f"channels must be even and 2 or more, got {self.channels}")
        for name, least in (("residual_channels", 1), ("residual_blocks", 0), ("halvings", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be {least} or more, got {getattr(self, name)}")

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
