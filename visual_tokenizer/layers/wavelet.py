"""The Haar wavelet transform of clips, which turns blocks of pixels into channels without loss.

Paper: Cosmos World Foundation Model Platform for Physical AI (NVIDIA, 2025), arXiv:2501.03575, section 5.2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def haar(clip: Tensor) -> Tensor:
    """Halve time, height and width by sums and differences of neighbours: (B, C, T, H, W) → (B, 8C, T/2, H/2, W/2).

    Each of the 8 bands is a mean of ± the 2 × 2 × 2 pixels; the first is their plain mean. The bands are in the order
    low and high of time (slowest), height, width, each with all channels.
    """
    for axis in (4, 3, 2):
        first, second = clip.unflatten(axis, (-1, 2)).unbind(axis + 1)
        clip = torch.cat([first + second, first - second], dim=1) / 2
    return clip


def inverse_haar(bands: Tensor) -> Tensor:
    """Undo `haar`: (B, 8C, T, H, W) → (B, C, 2T, 2H, 2W)."""
    for axis in (2, 3, 4):
        low, high = bands.chunk(2, dim=1)
        bands = torch.stack([low + high, low - high], dim=axis + 1).flatten(axis, axis + 1)
    return bands


def causal_patches(clip: Tensor, levels: int) -> Tensor:
    """Transform 1 + n·2^levels frames to 1 + n, all bands again at each level.

    The first frame is repeated 2^levels times, so that it is transformed alone: (B, C, T, H, W) →
    (B, C · 8^levels, t, H / 2^levels, W / 2^levels).
    """
    side = 2**levels
    clip = torch.cat([clip[:, :, :1].expand(-1, -1, side - 1, -1, -1), clip], dim=2)
    for _ in range(levels):
        clip = haar(clip)
    return clip


def causal_pixels(bands: Tensor, levels: int) -> Tensor:
    """Undo `causal_patches`; of the first 2^levels frames the last is kept."""
    for _ in range(levels):
        bands = inverse_haar(bands)
    return bands[:, :, 2**levels - 1 :]
