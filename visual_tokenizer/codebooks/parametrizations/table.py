"""The codes are the table.

Paper: Neural Discrete Representation Learning (van den Oord et al., 2017), arXiv:1711.00937, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from visual_tokenizer.codebooks.parametrizations.base import Parametrization, ParametrizationConfig


@dataclass(kw_only=True)
class TableConfig(ParametrizationConfig):
    """A plain table has no fields."""


class Table(Parametrization):
    """The identity."""

    Config = TableConfig
    learns_by_gradient = False

    def forward(self, table: Tensor) -> Tensor:
        return table

    def invert(self, codes: Tensor) -> Tensor:
        return codes
