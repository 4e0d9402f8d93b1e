"""Affine reparameterisation from running moments: the codes take the latents' mean and variance.

Paper: Straightening Out the Straight-Through Estimator (Huh et al., 2023), arXiv:2305.08842, section 4.1, with the
statistics as exponential moving averages: e = σ_z/σ_t ⊙ (table − μ_t) + μ_z. Moments are those of all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor

from visual_tokenizer.codebooks.distributed import sum_over_ranks
from visual_tokenizer.codebooks.parametrizations.base import Parametrization, ParametrizationConfig


@dataclass(kw_only=True)
class MatchedMomentsConfig(ParametrizationConfig):
    """Fields of the affine reparameterisation from running moments."""

    latents_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.99
    """Weight of the past in the latents' mean and variance."""

    table_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """Weight of the past in the table's mean and variance."""


class MatchedMoments(Parametrization):
    """`σ_z/σ_t ⊙ (table − μ_t) + μ_z`; the identity until latents were seen."""

    Config = MatchedMomentsConfig
    latent_mean: Tensor
    latent_variance: Tensor
    table_mean: Tensor
    table_variance: Tensor
    observed_steps: Tensor

    def __init__(self, config: MatchedMomentsConfig, *, codebook_size: int, code_dim: int, **context: Any) -> None:
        super().__init__(config, codebook_size=codebook_size, code_dim=code_dim, **context)
        for name in ("latent", "table"):
            self.register_buffer(f"{name}_mean", torch.zeros(code_dim))
            self.register_buffer(f"{name}_variance", torch.ones(code_dim))
        self.register_buffer("observed_steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, latents: Tensor, table: Tensor) -> None:
        count = latents.new_full((1,), latents.shape[0])
        moments = sum_over_ranks(torch.cat([latents.sum(dim=0), latents.square().sum(dim=0), count]))
        total = moments[-1]
        mean, square = (moments[:-1] / total.clamp_min(1)).chunk(2)
        seen = total > 0
        self._follow("latent", mean, (square - mean.square()).clamp_min(0), self.config.latents_decay, seen)
        self._follow("table", table.mean(dim=0), table.var(dim=0, unbiased=False), self.config.table_decay, seen)
        self.observed_steps.add_(seen.long())

    def _follow(self, name: str, mean: Tensor, variance: Tensor, decay: float, seen: Tensor) -> None:
        """Move the running moments; the first that are seen are taken as they are."""
        step = torch.where(self.observed_steps == 0, 1.0, 1 - decay) * seen
        getattr(self, f"{name}_mean").lerp_(mean, step)
        getattr(self, f"{name}_variance").lerp_(variance, step)

    def _scale(self) -> Tensor:
        return (self.latent_variance / self.table_variance.clamp_min(1e-8)).sqrt()

    def forward(self, table: Tensor) -> Tensor:
        return self._scale() * (table - self.table_mean) + self.latent_mean

    def invert(self, codes: Tensor) -> Tensor:
        return (codes - self.latent_mean) / self._scale().clamp_min(1e-4) + self.table_mean
