"""SimVQ: a frozen Gaussian table times one learned matrix, so that every step moves all codes.

Paper: Addressing Representation Collapse in Vector Quantized Models with One Linear Layer (Zhu et al., 2024),
arXiv:2411.02038, section 3. The table keeps the standard deviation C^−½ of the initializer `random`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from visual_tokenizer.codebooks.parametrizations.base import Parametrization, ParametrizationConfig


@dataclass(kw_only=True)
class SimVQConfig(ParametrizationConfig):
    """Fields of SimVQ."""

    bias: bool = True
    """Give the linear layer a bias, as the authors' code does; the paper's W has none."""


class SimVQ(Parametrization):
    """`table @ Wᵀ + b`; the table never learns."""

    Config = SimVQConfig
    trains_table = False

    def __init__(self, config: SimVQConfig, *, codebook_size: int, code_dim: int, **context: Any) -> None:
        super().__init__(config, codebook_size=codebook_size, code_dim=code_dim, **context)
        self.linear = nn.Linear(code_dim, code_dim, bias=config.bias)

    def forward(self, table: Tensor) -> Tensor:
        codes: Tensor = self.linear(table)
        return codes
