"""What quantizers and tokenizers return. Shapes: B pictures, N positions, C channels, H × W pixels."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class QuantizerOutput:
    """Result of one quantization."""

    codes: Tensor
    """(B, N, C) float; straight-through in training: what the decoder sees."""
    indices: Tensor
    """(B, N) int64 in [0, codebook_size), or (B, N, num_codebooks)."""
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
    """(B, *token_grid) int64, or (B, *token_grid, num_codebooks)."""
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
