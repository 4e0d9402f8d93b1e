"""Two-dimensional sine and cosine positions, computed for whatever grid comes.

Papers: Attention Is All You Need (Vaswani et al., 2017), arXiv:1706.03762, section 3.5; in two dimensions as in Masked
Autoencoders Are Scalable Vision Learners (He et al., 2021), arXiv:2111.06377: half of the channels say the column, half
the row.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoidal_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Return (1, height · width, channels) float32, row by row; `channels` is a multiple of 4.

    A position (y, x) is [sin xω, cos xω, sin yω, cos yω] with ω_i = 10000^(−4i / channels).
    """
    quarter = channels // 4
    exponents = torch.arange(quarter, device=device, dtype=torch.float32) / quarter
    frequencies = torch.exp(-math.log(10000.0) * exponents)

    def waves(length: int) -> Tensor:
        angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    columns = waves(width)[None, :, :].expand(height, -1, -1)
    rows = waves(height)[:, None, :].expand(-1, width, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, height * width, channels)
