"""Gumbel-softmax: a code is drawn from softmax(−‖z − e‖²) by a relaxation whose temperature falls to 1/16.

Papers: Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), arXiv:1611.01144, eq. 2; schedule and
KL to the uniform prior as in Zero-Shot Text-to-Image Generation (Ramesh et al., 2021), arXiv:2102.12092, section 2.1
and appendix A.2. The quantizer `gumbel` draws from learned logits as the dVAE does; this estimator draws from the
distances to an explicit codebook. It keeps tokens × codes in memory, because each pair has its own noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from visual_tokenizer.codebooks.annealing import cosine_annealed, linear_warmup
from visual_tokenizer.codebooks.assignment import Assignment
from visual_tokenizer.codebooks.estimators.base import Estimator, EstimatorConfig
from visual_tokenizer.codebooks.relaxation import gumbel_noise, kl_to_uniform


@dataclass(kw_only=True)
class GumbelConfig(EstimatorConfig):
    """Fields of Gumbel-softmax."""

    temperature: Annotated[float, Gt(0)] = 1.0
    """τ at the first step."""

    final_temperature: Annotated[float, Gt(0)] = 1 / 16
    """τ after `anneal_steps`."""

    anneal_steps: Annotated[int, Ge(0)] = 150000
    """Steps over which τ falls along half a cosine."""

    hard: bool = False
    """Let the decoder see the drawn code itself, with the relaxation's gradient (straight-through Gumbel-softmax)."""

    kl_weight: Annotated[float, Ge(0)] = 0.0
    """Factor on the mean over latents of KL(softmax(logits) ‖ uniform) in nats. The dVAE's 6.6 weighs the sum over
    latents per sub-pixel: 6.6 · N / (3HW) here."""

    kl_warmup_steps: Annotated[int, Ge(0)] = 5000
    """Steps over which that factor grows from 0."""


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
        temperature = cosine_annealed(
            config.temperature, config.final_temperature, config.anneal_steps, assignment.steps
        )
        assert assignment.noise is not None  # every training step draws it
        relaxed = ((logits + assignment.noise) / temperature).softmax(dim=1) @ assignment.codebook
        return assignment.codes.detach() + (relaxed - relaxed.detach()) if config.hard else relaxed

    def losses(self, assignment: Assignment, codes: Tensor) -> dict[str, Tensor]:
        if self.config.kl_weight == 0:
            return {}
        weight = self.config.kl_weight * linear_warmup(self.config.kl_warmup_steps, assignment.steps)
        return {"kl_uniform": weight * kl_to_uniform(_logits(assignment.latents, assignment.codebook))}


def _logits(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return −‖z − e‖² without the term ‖z‖², which no softmax sees: (M, C), (K, C) → (M, K)."""
    return torch.addmm(-codebook.square().sum(dim=1), latents, codebook.t(), alpha=2)
