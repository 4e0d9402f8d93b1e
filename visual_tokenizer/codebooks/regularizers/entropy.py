"""Entropy of the soft assignment: each latent is to be sure of its code, all latents together are to use all codes.

Papers: Language Model Beats Diffusion: Tokenizer is Key to Visual Generation (Yu et al., 2023), arXiv:2310.05737,
section 3.1; with softmax(−‖z − e‖²/τ) over an explicit codebook as in the code of LlamaGen (Sun et al., 2024),
arXiv:2406.06525, and with softmax(z·e/τ) as in that of IBQ (Shi et al., 2024), arXiv:2412.02692. With `sample_weight` 0
it is −H(p̄), the entropy regularization of codebook usage. Entropies are in nats, a mean over latents and a sum over
codes; p̄ is the mean over the latents of all ranks, each rank counting the same. Published code adds 1e-5 inside the
logarithms, which is above 1/K for large codebooks; here nothing is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor

from visual_tokenizer.codebooks.distributed import average_over_ranks
from visual_tokenizer.codebooks.regularizers.base import Regularizer, RegularizerConfig
from visual_tokenizer.codebooks.soft_assignment import LOGITS, Similarity, assignment_entropies, distribution_entropy
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class EntropyConfig(RegularizerConfig):
    """Fields of the entropy regularizer."""

    temperature: Annotated[float, Gt(0)] = 0.01
    """τ of the softmax; LlamaGen's and IBQ's value, for codes of about unit length. Where squared distances differ by
    far more than τ, p is one-hot and the term has no gradient."""

    similarity: Similarity = "distance"
    """`distance`: logits −‖z − e‖²/τ; `dot`: logits z·e/τ."""

    sample_weight: Annotated[float, Ge(0)] = 1.0
    """Factor on the mean over latents of H(p), which is minimised."""

    batch_weight: Annotated[float, Ge(0)] = 1.0
    """Factor on H(p̄), which is maximised."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample_weight == self.batch_weight == 0:
            raise UserError("sample_weight and batch_weight must not both be 0")


class Entropy(Regularizer):
    """`sample_weight · mean_i H(p_i) − batch_weight · H(p̄)`; at least −batch_weight · log K."""

    Config = EntropyConfig
    moves_latents = True

    def forward(self, latents: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
        logits = LOGITS[self.config.similarity](latents, codebook, self.config.temperature)
        mean_probabilities, sample_entropy = assignment_entropies(*logits)
        batch_entropy = distribution_entropy(average_over_ranks(mean_probabilities))
        return self.config.sample_weight * sample_entropy - self.config.batch_weight * batch_entropy
