"""Prior distribution regularization: the mean soft assignment is drawn to the uniform distribution.

Paper: Regularized Vector Quantization for Tokenized Image Synthesis (Zhang et al., 2023), arXiv:2303.06424, the prior
distribution regularization. KL(p̄ ‖ uniform) = log K − H(p̄) in nats, a sum over codes, with p̄ the mean of softmax
probabilities over the latents of all ranks: a histogram of the chosen codes has no gradient. The stochastic mask and
the contrastive loss of that paper are not part of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from visual_tokenizer.codebooks.distributed import average_over_ranks
from visual_tokenizer.codebooks.regularizers.base import Regularizer, RegularizerConfig
from visual_tokenizer.codebooks.soft_assignment import LOGITS, Similarity, assignment_entropies, distribution_entropy


@dataclass(kw_only=True)
class KLUniformConfig(RegularizerConfig):
    """Fields of the KL divergence to the uniform distribution."""

    temperature: Annotated[float, Gt(0)] = 0.01
    """τ of the softmax; for codes of about unit length, as in `entropy`."""

    similarity: Similarity = "distance"
    """`distance`: logits −‖z − e‖²/τ; `dot`: logits z·e/τ."""


class KLUniform(Regularizer):
    """`Σ_k p̄_k log(K p̄_k)`: between 0 and log K; 0 without latents."""

    Config = KLUniformConfig
    moves_latents = True

    def forward(self, latents: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
        logits = LOGITS[self.config.similarity](latents, codebook, self.config.temperature)
        mean_probabilities = average_over_ranks(assignment_entropies(*logits)[0])
        return math.log(codebook.shape[0]) * mean_probabilities.sum() - distribution_entropy(mean_probabilities)
