"""Convolutions over time in which a chunk of frames sees itself and earlier ones, and Emu3's blocks of them.

Paper: Emu3: Next-Token Prediction is All You Need (Wang et al., 2024), arXiv:2409.18869, section 2.2. The paper names
two temporal residual layers of 3-D convolutions; batch normalisation and padding are those of the published weights.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ChunkCausalConv3d(nn.Module):
    """A convolution of which output frame i sees input frames up to (i + 1) · stride − 1.

    (B, in, T, H, W) → (B, out, T / stride, H, W). With stride 1 no frame sees a later one; with more, `stride` frames
    become one that sees all of them. All padding is zeros; in time it comes first.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: over time, height and width; in time at least the stride.
        time_stride: frames that become one.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int], *, time_stride: int = 1
    ) -> None:
        super().__init__()
        down, across = (side - 1 for side in kernel_size[1:])
        self.padding = (
            *(across - across // 2, across // 2),
            *(down - down // 2, down // 2),
            *(kernel_size[0] - time_stride, 0),
        )
        self.conv = nn.Conv3d(in_channels, out_channels, kernel_size, stride=(time_stride, 1, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(F.pad(hidden, self.padding))


class TemporalResidualBlock(nn.Module):
    """Batch norm, SiLU, causal 3 × 3 × 3 convolution, twice, beside the identity: (B, C, T, H, W) → the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm3d(channels)
        self.conv1 = ChunkCausalConv3d(channels, channels, (3, 3, 3))
        self.norm2 = nn.BatchNorm3d(channels)
        self.conv2 = ChunkCausalConv3d(channels, channels, (3, 3, 3))

    def forward(self, hidden: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden)))
        return hidden + self.conv2(F.silu(self.norm2(residual)))
