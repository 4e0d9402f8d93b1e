"""Finite scalar quantization: each channel is bounded and rounded to a few levels; the codebook is their product.

Paper: Finite Scalar Quantization: VQ-VAE Made Simple (Mentzer et al., 2023), arXiv:2309.15505, section 3.1 and the code
of appendix A. The grid is the published one: an even number of levels L gives −L/2 … L/2−1, divided by L/2, so that
+1 is never reached. The first channel varies fastest in the index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from visual_tokenizer.codebooks.search import code_counts
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig, batch_metrics


@dataclass(kw_only=True)
class FSQConfig(QuantizerConfig):
    """Fields of FSQ."""

    levels: list[int] = field(default_factory=lambda: [8, 5, 5, 5])
    """Levels of each channel, each 2 or more; their product is the codebook size, below 2^31."""

    epsilon: float = 1e-3
    """How far the bound reaches past the outer levels, which keeps them reachable by rounding; in (0, 1)."""

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 2:
            raise ValueError(f"levels must be a list of integers of 2 or more, got {self.levels}")
        if math.prod(self.levels) >= 2**31:
            raise ValueError(f"the product of levels must be below 2^31, got {math.prod(self.levels)}")
        if not 0 < self.epsilon < 1:
            raise ValueError(f"epsilon must be in (0, 1), got {self.epsilon}")


class FSQ(Quantizer):
    """Rounds bounded channels; no codebook, no losses."""

    Config = FSQConfig
    levels: Tensor
    half_levels: Tensor
    basis: Tensor
    half_range: Tensor
    offset: Tensor
    shift: Tensor

    def __init__(self, config: FSQConfig) -> None:
        super().__init__(config)
        self.code_dim = len(config.levels)
        self.codebook_size = math.prod(config.levels)
        self.register_derived_buffers()

    def derived_buffers(self) -> dict[str, Tensor]:
        levels = torch.tensor(self.config.levels)
        half_range = (levels - 1).float() * (1 + self.config.epsilon) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return {
            "levels": levels,
            "half_levels": levels // 2,
            "basis": torch.cat([torch.ones(1, dtype=torch.int64), levels.cumprod(0)[:-1]]),
            "half_range": half_range,
            "offset": offset,
            "shift": torch.atanh(offset / half_range),
        }

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        bounded = torch.tanh(latents + self.shift) * self.half_range - self.offset
        # Straight-through, written so that the value is the grid's to the last bit.
        rounded = bounded.detach().round() + (bounded - bounded.detach())
        digits = bounded.detach().round().long() + self.half_levels
        indices = (digits * self.basis).sum(dim=-1)
        return QuantizerOutput(
            codes=rounded / self.half_levels,
            indices=indices,
            metrics=batch_metrics(code_counts(indices, self.codebook_size)),
        )

    def lookup(self, indices: Tensor) -> Tensor:
        digits = indices[..., None].div(self.basis, rounding_mode="floor") % self.levels
        return (digits - self.half_levels).float() / self.half_levels
