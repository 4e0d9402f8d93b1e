"""Gumbel-softmax: a code is drawn from softmax(−‖z − e‖²) by a relaxation whose temperature falls to 1/16.

Papers: Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), arXiv:1611.01144, eq. 2; schedule and
KL to the uniform prior as in Zero-Shot Text-to-Image Generation (Ramesh et al., 2021), arXiv:2102.12092, section 2.1
and appendix A.2. The quantizer `gumbel` draws from learned logits as the dVAE does; this estimator draws from the
distances to an explicit codebook. It keeps tokens × codes in memory, because each pair has its own noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visual_tokenizer.codebooks.annealing import GumbelDrawConfig, gumbel_noise
from visual_tokenizer.codebooks.assignment import Assignment
from visual_tokenizer.codebooks.estimators.base import Estimator, EstimatorConfig


@dataclass(kw_only=True)
class GumbelConfig(GumbelDrawConfig, EstimatorConfig):
    """Fields of Gumbel-softmax."""


class Gumbel(Estimator):
    """`softmax((ℓ + g)/τ) E` with ℓ = −‖z − e‖² and Gumbel noise g."""

    Config = GumbelConfig

    def draw_noise(self, latents: Tensor, codebook: Tensor) -> Tensor | None:
        return gumbel_noise(latents.shape[0], codebook.shape[0], latents)

    def assign(self, latents: Tensor, codebook: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            return super().assign(latents, codebook)
        return (_logits(latents, codebook) + noise).argmax(dim=1)

    def forward(self, assignment: Assignment) -> Tensor:
        config, logits = self.config, _logits(assignment.latents, assignment.codebook)
        assert assignment.noise is not None  # every training step draws it
        relaxed = ((logits + assignment.noise) / config.temperature_at(assignment.steps)).softmax(
            dim=1
        ) @ assignment.codebook
        return assignment.codes.detach() + (relaxed - relaxed.detach()) if config.hard else relaxed

    def losses(self, assignment: Assignment, codes: Tensor) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.config.kl_loss(
            _logits(assignment.latents, assignment.codebook), assignment.steps
        )
        return losses


def _logits(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return −‖z − e‖² without the term ‖z‖², which no softmax sees: (M, C), (K, C) → (M, K)."""
    return torch.addmm(-codebook.square().sum(dim=1), latents, codebook.t(), alpha=2)
