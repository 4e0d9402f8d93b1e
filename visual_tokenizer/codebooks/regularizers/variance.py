"""Codebook variance: codes are to spread at least so far around their mean.

`max(0, γ − Var)` with Var = mean_k ‖e_k − ē‖², the variance summed over channels and averaged over codes, so that its
size depends neither on K nor, for codes of a given length, on C.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.codebooks.regularizers.base import Regularizer, RegularizerConfig


@dataclass(kw_only=True)
class VarianceConfig(RegularizerConfig):
    """Fields of the variance regularizer."""

    target: Annotated[float, Gt(0)] = 1.0
    """γ, the variance above which the term is 0, in units of squared distance. Codes on the unit sphere have at most 1,
    where their mean is 0."""


class Variance(Regularizer):
    """`max(0, γ − mean_k ‖e_k − ē‖²)`."""

    Config = VarianceConfig
    moves_latents = False

    def forward(self, latents: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
        variance = codebook.var(dim=0, correction=0).sum()
        return F.relu(self.config.target - variance)
