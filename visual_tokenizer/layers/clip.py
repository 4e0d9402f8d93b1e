"""Pictures as clips of one frame, and clips as tokens."""

from __future__ import annotations

from torch import Tensor

from visual_tokenizer.errors import UserError


def as_clip(pixels: Tensor) -> Tensor:
    """Return (B, C, T, H, W) as it is, and a picture (B, C, H, W) as a clip of one frame."""
    return pixels.unsqueeze(2) if pixels.ndim == 4 else pixels


def as_asked(clip: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return (B, C, T, H, W) as it is for a grid of three sides, and its one frame (B, C, H, W) for one of two.

    Raises:
        ValueError: a grid of two sides, and a decoder that makes several frames of it.
    """
    if len(grid) == 3:
        return clip
    if clip.shape[2] != 1:
        raise UserError(f"the grid must be (t, h, w): this decoder makes {clip.shape[2]} frames of {grid}")
    return clip.squeeze(2)


def tokens_from_clip(feature_map: Tensor) -> Tensor:
    """Flatten (B, C, t, h, w) to (B, t·h·w, C), frame by frame and row by row."""
    return feature_map.flatten(2).transpose(1, 2)


def clip_from_tokens(tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Fold (B, N, C) to (B, C, t, h, w); a grid (h, w) is one frame."""
    sides = (1, *grid) if len(grid) == 2 else grid
    return tokens.transpose(1, 2).unflatten(2, sides).contiguous()
