"""Codebook orthogonality, in two forms.

`gram`: ‖EᵀE − I‖_F², whose C × C entries vanish where the columns of E (K, C) are orthonormal: codes then have a mean
squared length of C/K. `cosine`: Σ_{i≠j} (ẽ_i·ẽ_j)² over normalised codes, which cannot vanish for more codes than
channels: the mean is at least (K − C) / (C (K − 1)) (Welch, 1974). That sum is ‖ẼᵀẼ‖_F² − K exactly, so that both forms
take one (C, C) product. Sums over pairs of codes grow with K²: `gram` is divided by K², `cosine` by K (K − 1), which
makes it the mean over pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.codebooks.regularizers.base import Regularizer, RegularizerConfig

Form = Literal["gram", "cosine"]


@dataclass(kw_only=True)
class OrthogonalityConfig(RegularizerConfig):
    """Fields of the orthogonality regularizer."""

    form: Form = "cosine"
    """`cosine`: mean squared cosine of pairs of codes; `gram`: ‖EᵀE − I‖_F² / K², which sets the scale of codes too."""


class Orthogonality(Regularizer):
    """`‖EᵀE − I‖_F² / K²`, or `(‖ẼᵀẼ‖_F² − K) / (K (K − 1))`."""

    Config = OrthogonalityConfig
    moves_latents = False

    def forward(self, latents: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
        size, dim = codebook.shape
        if self.config.form == "gram":
            gram = codebook.t() @ codebook
            return (gram - torch.eye(dim, dtype=gram.dtype, device=gram.device)).square().sum() / size**2
        directions = F.normalize(codebook, dim=1)
        return ((directions.t() @ directions).square().sum() - size) / (size * max(size - 1, 1))
