"""Variance and covariance regularization of the codebook: every channel varies, and no two vary together.

Paper: VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning (Bardes et al., 2022),
arXiv:2105.04906, eq. 1–4, with codes in the place of a batch's embeddings; the invariance term has no counterpart, as
a code has no second view. Variance and covariance divide by K − 1. The first term is a mean over channels, the second a
sum over pairs of channels divided by C, as in the paper; neither grows with K.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.codebooks.regularizers.base import Regularizer, RegularizerConfig
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class VICRegConfig(RegularizerConfig):
    """Fields of the variance and covariance regularizer."""

    variance_weight: Annotated[float, Ge(0)] = 25.0
    """λ_v, factor on the variance term, the paper's."""

    covariance_weight: Annotated[float, Ge(0)] = 1.0
    """λ_c, factor on the covariance term, the paper's."""

    target: Annotated[float, Gt(0)] = 1.0
    """γ, standard deviation of a channel above which its variance term is 0. On the unit sphere channels have about
    1/√C."""

    epsilon: Annotated[float, Gt(0)] = 1e-4
    """Added to the variance, which bounds the root's gradient."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variance_weight == self.covariance_weight == 0:
            raise UserError("variance_weight and covariance_weight must not both be 0")


class VICReg(Regularizer):
    """`λ_v mean_d max(0, γ − √(Var_d + ε)) + λ_c Σ_{i≠j} Cov_ij² / C`."""

    Config = VICRegConfig
    moves_latents = False

    def forward(self, latents: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
        size, dim = codebook.shape
        centred = codebook - codebook.mean(dim=0)
        covariance = centred.t() @ centred / max(size - 1, 1)
        variances = covariance.diagonal()
        variance_term = F.relu(self.config.target - (variances + self.config.epsilon).sqrt()).mean()
        covariance_term = (covariance - variances.diag()).square().sum() / dim
        return self.config.variance_weight * variance_term + self.config.covariance_weight * covariance_term
