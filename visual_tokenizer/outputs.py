"""What quantizers and tokenizers return. Shapes: B pictures, N positions, C channels, H × W pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

ABSENT = -1
"""Stands in `indices` behind the last token of a picture that has fewer tokens than others may have."""


class Selection(NamedTuple):
    """The latents of pictures that have as many as each of them needs."""

    latents: Tensor
    """(B, N, C) a picture's own latents first, in raster order; what stands behind them means nothing."""
    present: Tensor
    """(B, N) bool: which are a picture's own; at least the first is."""
    decisions: Tensor
    """(B, P) float: 1 for each of P places that was kept, 0 for the others; in training with a gradient."""


@dataclass
class QuantizerOutput:
    """Result of one quantization."""

    codes: Tensor
    """(B, N, C) float; straight-through in training: what the decoder sees. 0 where no latent is present."""
    indices: Tensor
    """(B, N) int64 in [0, codebook_size), or (B, N, num_codebooks). `ABSENT` where no latent is present."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """Scalars, each already weighted; their sum is the quantizer's loss."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Detached scalars: perplexity, usage, quantization error."""


@dataclass
class TokenizerOutput:
    """Result of one pass pixels → indices → pixels."""

    pixels: Tensor
    """(B, 3, H, W) reconstruction, about [-1, 1] (not clamped, so that gradients pass); (B, 3, T, H, W) of clips."""
    indices: Tensor
    """(B, *token_grid) int64, or (B, *token_grid, num_codebooks); `ABSENT` behind a picture's own tokens."""
    latents: Tensor
    """(B, N, C) what entered the quantizer."""
    codes: Tensor
    """(B, N, C) what left it."""
    raw: Tensor
    """What the decoder gave: the pixels, or the parameters of a distribution over them, (B, 6, H, W)."""
    losses: dict[str, Tensor] = field(default_factory=dict)
    """The quantizer's weighted losses."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """The quantizer's detached metrics."""
    present: Tensor | None = None
    """(B, N) bool: which latents, codes and indices are a picture's own; None where all pictures have all of them."""
    decisions: Tensor | None = None
    """(B, P) which places an encoder of variable length kept, see `Selection`; None for others."""


def own_tokens(indices: Tensor) -> list[Tensor]:
    """Return the indices of each picture without the `ABSENT` ones behind them.

    Args:
        indices: int64 (B, N), or (B, N, num_codebooks).

    Returns:
        B tensors (n,) or (n, num_codebooks).
    """
    first = indices if indices.ndim == 2 else indices[..., 0]
    return [row[:length] for row, length in zip(indices, (first != ABSENT).sum(1).tolist(), strict=True)]


def pad_tokens(pictures: Sequence[Tensor], most: int) -> Tensor:
    """Undo `own_tokens`: return (B, most[, num_codebooks]) of B tensors (n[, num_codebooks]), `ABSENT` behind them."""
    padded = pictures[0].new_full((len(pictures), most, *pictures[0].shape[1:]), ABSENT)
    for row, picture in zip(padded, pictures, strict=True):
        row[: len(picture)] = picture
    return padded
