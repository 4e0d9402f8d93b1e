"""How gradients pass the assignment of latents to codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from visual_tokenizer.codebooks.search import nearest_codes
from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class EstimatorConfig(PartConfig, package="visual_tokenizer.codebooks.estimators"):
    """Fields that every estimator has (none)."""


class Estimator(nn.Module):
    """Assigns latents to codes and carries gradients across that step."""

    Config: ClassVar[type[EstimatorConfig]]

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        self.config: Any = config

    def assign(self, latents: Tensor, codebook: Tensor) -> Tensor:
        """Return the index of each latent's code: (M, C), (K, C) → (M,) int64. Nearest unless overridden."""
        return nearest_codes(latents, codebook)

    def forward(self, latents: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
        """Return what the decoder sees, with the estimator's gradient: (M, C), (K, C), (M,) → (M, C)."""
        raise NotImplementedError


PART = Estimator
