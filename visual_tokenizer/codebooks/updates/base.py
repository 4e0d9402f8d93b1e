"""How a codebook learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class UpdateConfig(PartConfig, package="visual_tokenizer.codebooks.updates"):
    """Fields that every update has (none)."""


class Update(nn.Module):
    """Moves codes towards the latents that chose them."""

    Config: ClassVar[type[UpdateConfig]]
    trains_by_gradient: ClassVar[bool]
    """Whether the codebook is a parameter of the optimiser."""

    def __init__(self, config: UpdateConfig, *, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        self.config: Any = config

    def loss(self, latents: Tensor, codes: Tensor) -> Tensor | None:
        """Return the loss that moves the codes, or None: (M, C) latents and their (M, C) codes → scalar."""
        return None

    @torch.no_grad()
    def step_before(self, codebook: Tensor, latents: Tensor, indices: Tensor) -> None:
        """Move `codebook` (K, C) in place before the codes are looked up; as `step` otherwise."""

    @torch.no_grad()
    def step(self, codebook: Tensor, latents: Tensor, indices: Tensor) -> None:
        """Move `codebook` (K, C) in place, given (M, C) latents and the (M,) codes they chose."""

    @torch.no_grad()
    def reset(self, codebook: Tensor, rows: Tensor | None = None) -> None:
        """Forget what is known of the codes in the (K,) mask `rows` (all if None), which were just replaced."""


PART = Update
