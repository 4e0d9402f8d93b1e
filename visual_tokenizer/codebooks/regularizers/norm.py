"""Norm control: code lengths are drawn to 1, so that their scale does not drift.

The penalty of explicit codebooks where codes are not normalised. The usual form Σ_k (‖e_k‖ − 1)² grows with the
codebook; this is its mean over codes, which is that sum divided by K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visual_tokenizer.codebooks.regularizers.base import Regularizer, RegularizerConfig


@dataclass(kw_only=True)
class NormConfig(RegularizerConfig):
    """Norm control has no fields of its own."""


class Norm(Regularizer):
    """`mean_k (‖e_k‖ − 1)²`."""

    Config = NormConfig
    moves_latents = False

    def forward(self, latents: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
        return (torch.linalg.vector_norm(codebook, dim=1) - 1).square().mean()
