"""How gradients pass the assignment of latents to codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from visual_tokenizer.codebooks.assignment import Assignment
from visual_tokenizer.codebooks.search import nearest_codes
from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class EstimatorConfig(PartConfig, package="visual_tokenizer.codebooks.estimators"):
    """Fields that every estimator has (none)."""


class Estimator(nn.Module):
    """Assigns latents to codes and carries gradients across that step."""

    Config: ClassVar[type[EstimatorConfig]]
    needs_trained_codebook: ClassVar[bool] = False
    """Whether it is meant to train the codebook, which then learns by gradient."""

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        self.config: Any = config

    def draw_noise(self, latents: Tensor, codebook: Tensor) -> Tensor | None:
        """Return what a training step's assignment is drawn with, (M, K), or None where nothing is drawn."""
        return None

    def assign(self, latents: Tensor, codebook: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the index of each latent's code: (M, C), (K, C) → (M,) int64. Nearest unless overridden."""
        return nearest_codes(latents, codebook)

    def forward(self, assignment: Assignment) -> Tensor:
        """Return what the decoder sees in training, (M, C), with the estimator's gradient."""
        raise NotImplementedError

    def losses(self, assignment: Assignment, codes: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms that belong to the estimator; `codes` is what `forward` gave."""
        return {}


PART = Estimator
