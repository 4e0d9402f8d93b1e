"""Soft assignment: in training the decoder sees the mean of the codes under softmax(−‖z − e‖²/τ), and τ falls.

The survey's explicit and soft cell; as annealed soft-to-hard quantization: Soft-to-Hard Vector Quantization for
End-to-End Learning Compressible Representations (Agustsson et al., 2017), arXiv:1704.00648, section 3.2. Indices, and
codes outside training, are those of the nearest code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor

from visual_tokenizer.codebooks.annealing import AnnealedConfig
from visual_tokenizer.codebooks.assignment import Assignment
from visual_tokenizer.codebooks.estimators.base import Estimator, EstimatorConfig
from visual_tokenizer.codebooks.soft_assignment import distance_logits, expected_values


@dataclass(kw_only=True)
class SoftConfig(AnnealedConfig, EstimatorConfig):
    """Fields of soft assignment."""

    final_temperature: Annotated[float, Gt(0)] = 0.01
    """τ after `anneal_steps`."""

    anneal_steps: Annotated[int, Ge(0)] = 10000
    """Steps over which τ falls along half a cosine."""


class Soft(Estimator):
    """`Σ_k softmax(−‖z − e_k‖²/τ)_k e_k`, with gradient to latents and to all codes."""

    Config = SoftConfig

    def forward(self, assignment: Assignment) -> Tensor:
        temperature = self.config.temperature_at(assignment.steps)
        logits = distance_logits(assignment.latents, assignment.codebook, temperature)
        return expected_values(*logits, assignment.codebook)
