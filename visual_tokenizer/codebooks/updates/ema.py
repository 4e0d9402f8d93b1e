"""Exponential moving averages: a code is the running mean of the latents that chose it.

Paper: Neural Discrete Representation Learning (van den Oord et al., 2017), arXiv:1711.00937, appendix A.1; Laplace
smoothing of the counts as in the authors' Sonnet. Counts and sums are added over all ranks before they are averaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Interval
from torch import Tensor

from visual_tokenizer.codebooks.distributed import sum_over_ranks
from visual_tokenizer.codebooks.search import code_counts
from visual_tokenizer.codebooks.updates.base import Update, UpdateConfig


@dataclass(kw_only=True)
class EMAConfig(UpdateConfig):
    """Fields of the EMA update."""

    decay: Annotated[float, Interval(ge=0, lt=1)] = 0.99
    """Weight γ of the past."""

    epsilon: Annotated[float, Gt(0)] = 1e-5
    """Laplace smoothing of the counts, which keeps unused codes from division by zero."""


class EMA(Update):
    """`N ← γN + (1−γ)n`, `M ← γM + (1−γ)m`, `e = M / N̂` with `N̂ = (N+ε)/(ΣN+Kε)·ΣN`."""

    Config = EMAConfig
    trains_by_gradient = False
    counts: Tensor
    sums: Tensor

    def __init__(self, config: EMAConfig, *, codebook_size: int, code_dim: int) -> None:
        super().__init__(config, codebook_size=codebook_size, code_dim=code_dim)
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", torch.zeros(codebook_size, code_dim))

    @torch.no_grad()
    def step(self, codebook: Tensor, latents: Tensor, indices: Tensor) -> None:
        size = codebook.shape[0]
        sums = torch.zeros_like(self.sums).index_add_(0, indices, latents)
        statistics = sum_over_ranks(torch.cat([code_counts(indices, size)[:, None], sums], dim=1))
        self.counts.lerp_(statistics[:, 0], 1 - self.config.decay)
        self.sums.lerp_(statistics[:, 1:], 1 - self.config.decay)
        total = self.counts.sum()
        smoothed = (self.counts + self.config.epsilon) / (total + size * self.config.epsilon) * total
        codebook.copy_(self.sums / smoothed[:, None])

    @torch.no_grad()
    def reset(self, codebook: Tensor, rows: Tensor | None = None) -> None:
        if rows is None:
            self.counts.fill_(1.0)
            self.sums.copy_(codebook)
        else:
            self.counts.masked_fill_(rows, 1.0)
            self.sums.copy_(torch.where(rows[:, None], codebook, self.sums))
