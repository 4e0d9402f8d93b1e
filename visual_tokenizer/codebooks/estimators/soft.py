"""Soft assignment: in training the decoder sees the mean of the codes under softmax(−‖z − e‖²/τ), and τ falls.

The survey's explicit and soft cell; as annealed soft-to-hard quantization: Soft-to-Hard Vector Quantization for
End-to-End Learning Compressible Representations (Agustsson et al., 2017), arXiv:1704.00648, section 3.2. Indices, and
codes outside training, are those of the nearest code.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from visual_tokenizer.codebooks.annealing import cosine_annealed
from visual_tokenizer.codebooks.assignment import Assignment
from visual_tokenizer.codebooks.estimators.base import Estimator, EstimatorConfig
from visual_tokenizer.codebooks.soft_assignment import distance_logits, expected_values
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class SoftConfig(EstimatorConfig):
    """Fields of soft assignment."""

    temperature: float = 1.0
    """τ at the first step, in units of squared distance; above 0."""

    final_temperature: float = 0.01
    """τ after `anneal_steps`; above 0."""

    anneal_steps: int = 10000
    """Steps over which τ falls along half a cosine; 0 or more."""

    def __post_init__(self) -> None:
        for name in ("temperature", "final_temperature"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.anneal_steps < 0:
            raise UserError(f"anneal_steps must be 0 or more, got {self.anneal_steps}")


class Soft(Estimator):
    """`Σ_k softmax(−‖z − e_k‖²/τ)_k e_k`, with gradient to latents and to all codes."""

    Config = SoftConfig

    def forward(self, assignment: Assignment) -> Tensor:
        config = self.config
        temperature = cosine_annealed(
            config.temperature, config.final_temperature, config.anneal_steps, assignment.steps
        )
        logits = distance_logits(assignment.latents, assignment.codebook, temperature)
        return expected_values(*logits, assignment.codebook)
