"""Alternated optimisation: before each training step the codes take steps of their own towards the latents.

Paper: Straightening Out the Straight-Through Estimator (Huh et al., 2023), arXiv:2305.08842, section 4.2. The inner
problem min_e mean(‖sg(z) − e_k‖²) is descended by SGD with momentum in closed form: its gradient for code k is
2(n_k e_k − m_k)/(MC), with n and m the counts and sums over all ranks. As in the authors' code the assignment is kept
while the codes move, and the decoder then sees the moved codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from visual_tokenizer.codebooks.distributed import sum_over_ranks
from visual_tokenizer.codebooks.search import code_counts
from visual_tokenizer.codebooks.updates.base import Update, UpdateConfig


@dataclass(kw_only=True)
class AlternatingConfig(UpdateConfig):
    """Fields of alternated optimisation."""

    learning_rate: Annotated[float, Gt(0)] = 50.0
    """Step of the inner SGD on mean(‖sg(z) − e_k‖²), a mean over latents and channels."""

    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """Momentum of the inner SGD."""

    inner_steps: Annotated[int, Ge(1)] = 1
    """Inner steps for each training step."""


class Alternating(Update):
    """`v ← μv + ∇`, `e ← e − ηv`, before the codes are looked up."""

    Config = AlternatingConfig
    trains_by_gradient = False
    velocity: Tensor

    def __init__(self, config: AlternatingConfig, *, codebook_size: int, code_dim: int) -> None:
        super().__init__(config, codebook_size=codebook_size, code_dim=code_dim)
        self.register_buffer("velocity", torch.zeros(codebook_size, code_dim))

    @torch.no_grad()
    def step_before(self, codebook: Tensor, latents: Tensor, indices: Tensor) -> None:
        sums = torch.zeros_like(codebook).index_add_(0, indices, latents)
        statistics = sum_over_ranks(torch.cat([code_counts(indices, codebook.shape[0])[:, None], sums], dim=1))
        counts, sums = statistics[:, :1], statistics[:, 1:]
        scale = 2 / (counts.sum().clamp_min(1) * codebook.shape[1])
        for _ in range(self.config.inner_steps):
            self.velocity.mul_(self.config.momentum).add_((counts * codebook - sums) * scale)
            codebook.sub_(self.velocity, alpha=self.config.learning_rate)

    @torch.no_grad()
    def reset(self, codebook: Tensor, rows: Tensor | None = None) -> None:
        if rows is None:
            self.velocity.zero_()
        else:
            self.velocity.masked_fill_(rows[:, None], 0.0)
