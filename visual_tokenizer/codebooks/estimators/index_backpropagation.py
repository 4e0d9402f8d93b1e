"""Index backpropagation (IBQ): the one-hot index itself carries the gradient, so that all codes learn at each step.

Paper: Scalable Image Tokenization with Index Backpropagation Quantization (Shi et al., 2024), arXiv:2412.02692,
section 3.2. Codes are scored by inner product; onehot(argmax) + p − sg(p), p = softmax(zEᵀ), multiplies the codebook.
The quantization loss goes both ways through that product. The authors' weights (1 on the latents' commitment, 0.25 on
the codes) are `commitment_weight: 0.25` with `loss_weighting: legacy`; their entropy term is the regularizer `entropy`
with `similarity: dot`. p is recomputed in chunks on the way back, so that 2^18 codes fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from visual_tokenizer.codebooks.assignment import Assignment, mean_square
from visual_tokenizer.codebooks.estimators.base import Estimator, EstimatorConfig
from visual_tokenizer.codebooks.search import most_similar_codes
from visual_tokenizer.codebooks.soft_assignment import dot_logits, expected_values


@dataclass(kw_only=True)
class IndexBackpropagationConfig(EstimatorConfig):
    """Fields of index backpropagation."""

    quantization_weight: Annotated[float, Ge(0)] = 1.0
    """Factor on mean(‖z_q − z‖²), whose gradient reaches latents and, through the index, all codes."""


class IndexBackpropagation(Estimator):
    """`(onehot + p − sg(p)) E`."""

    Config = IndexBackpropagationConfig
    needs_trained_codebook = True

    def assign(self, latents: Tensor, codebook: Tensor, noise: Tensor | None = None) -> Tensor:
        return most_similar_codes(latents, codebook)

    def forward(self, assignment: Assignment) -> Tensor:
        # p reaches the latents and the codebook as keys; as values the codebook learns from the chosen code alone.
        logits = dot_logits(assignment.latents, assignment.codebook, 1.0)
        expected = expected_values(*logits, assignment.codebook.detach())
        return assignment.codes + (expected - expected.detach())

    def losses(self, assignment: Assignment, codes: Tensor) -> dict[str, Tensor]:
        if self.config.quantization_weight == 0:
            return {}
        return {"quantization": self.config.quantization_weight * mean_square(codes, assignment.latents)}
