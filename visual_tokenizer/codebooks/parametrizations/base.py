"""What the codes are made of: the table itself, or something learned on top of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class ParametrizationConfig(PartConfig, package="visual_tokenizer.codebooks.parametrizations"):
    """Fields that every parametrization has (none)."""


class Parametrization(nn.Module):
    """Maps the stored table (K, C) to the codes (K, C)."""

    Config: ClassVar[type[ParametrizationConfig]]
    trains_table: ClassVar[bool] = True
    """Whether the table itself learns."""
    learns_by_gradient: ClassVar[bool] = True
    """Whether it has parameters of its own, which only a gradient update reaches."""

    def __init__(self, config: ParametrizationConfig, *, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        self.config: Any = config

    @torch.no_grad()
    def observe(self, latents: Tensor, table: Tensor) -> None:
        """See a training step's latents (M, C) before they are assigned."""

    def forward(self, table: Tensor) -> Tensor:
        """Return the codes of `table`."""
        raise NotImplementedError

    def invert(self, codes: Tensor) -> Tensor:
        """Return the table rows whose codes are `codes` (K, C): how new codes are written."""
        raise NotImplementedError


PART = Parametrization
