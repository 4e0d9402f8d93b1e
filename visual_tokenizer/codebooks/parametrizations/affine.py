"""Affine reparameterisation with learned scale and shift, which carry the unused codes along with the used ones.

Paper: Straightening Out the Straight-Through Estimator (Huh et al., 2023), arXiv:2305.08842, section 4.1, in the form
of the authors' code: e = (1 + r·s) ⊙ table + r·b with s, b learned from 0 and r the ratio of their learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from visual_tokenizer.codebooks.parametrizations.base import Parametrization, ParametrizationConfig
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class AffineConfig(ParametrizationConfig):
    """Fields of the learned affine reparameterisation."""

    learning_rate_ratio: Annotated[float, Gt(0)] = 1.0
    """How much faster scale and shift move than the table."""

    groups: Annotated[int, Ge(1)] = 1
    """Groups of codes with a scale and shift of their own; a divisor of the codebook size."""


class Affine(Parametrization):
    """`(1 + r·s) ⊙ table + r·b`, s and b shared by the codes of a group."""

    Config = AffineConfig

    def __init__(self, config: AffineConfig, *, codebook_size: int, code_dim: int, **context: Any) -> None:
        super().__init__(config, codebook_size=codebook_size, code_dim=code_dim, **context)
        if codebook_size % config.groups:
            raise UserError(f"groups must divide codebook_size {codebook_size}, got {config.groups}")
        self.scale = nn.Parameter(torch.zeros(config.groups, 1, code_dim))
        self.shift = nn.Parameter(torch.zeros(config.groups, 1, code_dim))

    def forward(self, table: Tensor) -> Tensor:
        ratio = self.config.learning_rate_ratio
        grouped = table.view(self.config.groups, -1, table.shape[1])
        return ((1 + ratio * self.scale) * grouped + ratio * self.shift).view(table.shape)

    def invert(self, codes: Tensor) -> Tensor:
        ratio = self.config.learning_rate_ratio
        grouped = codes.view(self.config.groups, -1, codes.shape[1])
        return ((grouped - ratio * self.shift) / (1 + ratio * self.scale)).view(codes.shape)
