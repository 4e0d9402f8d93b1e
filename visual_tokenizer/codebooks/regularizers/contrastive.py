"""Contrastive codebook loss: codes are classes, and each latent is to point to its own code and away from the others.

InfoNCE: Representation Learning with Contrastive Predictive Coding (van den Oord et al., 2018), arXiv:1807.03748,
eq. 4, with all codes as the candidates and the chosen code as the positive. −log softmax(z·e/τ) in nats, a mean over
latents. Where codes are not normalised, the nearest code need not be that of the largest product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from visual_tokenizer.codebooks.regularizers.base import Regularizer, RegularizerConfig
from visual_tokenizer.codebooks.soft_assignment import dot_logits, log_normalizers


@dataclass(kw_only=True)
class ContrastiveConfig(RegularizerConfig):
    """Fields of the contrastive loss."""

    temperature: Annotated[float, Gt(0)] = 0.07
    """τ of the softmax; 0.07 is usual for unit vectors."""


class Contrastive(Regularizer):
    """`mean_i (log Σ_k exp(z_i·e_k/τ) − z_i·e_{k_i}/τ)`; 0 without latents."""

    Config = ContrastiveConfig
    moves_latents = True

    def forward(self, latents: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
        scaled, keys, bias = dot_logits(latents, codebook, self.config.temperature)
        positives = (scaled * codebook[indices]).sum(dim=1)
        return (log_normalizers(scaled, keys, bias) - positives).sum() / max(latents.shape[0], 1)
