"""Alternated optimisation: before each training step the codes take steps of their own towards the latents.

Paper: Straightening Out the Straight-Through Estimator (Huh et al., 2023), arXiv:2305.08842, section 4.2. The inner
problem min_e mean(‖sg(z) − e_k‖²) is descended by SGD with momentum in closed form: its gradient for code k is
2(n_k e_k − m_k)/(MC), with n and m the counts and sums over all ranks. As in the authors' code the assignment is kept
while the codes move, and the decoder then sees the moved codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visual_tokenizer.codebooks.distributed import sum_over_ranks
from visual_tokenizer.codebooks.search import code_counts
from visual_tokenizer.codebooks.updates.base import Update, UpdateConfig
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class AlternatingConfig(UpdateConfig):
    """Fields of alternated optimisation."""

    learning_rate: float = 50.0
    """Step of the inner SGD on mean(‖sg(z) − e_k‖²), a mean over latents and channels; above 0."""

    momentum: float = 0.9
    """Momentum of the inner SGD; in [0, 1)."""

    inner_steps: int = 1
    """Inner steps for each training step; 1 or more."""

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise UserError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise UserError(f"momentum must be in [0, 1), got {self.momentum}")
        if self.inner_steps < 1:
            raise UserError(f"inner_steps must be 1 or more, got {self.inner_steps}")


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
