"""The least-squares loss.

Paper: Least Squares Generative Adversarial Networks (Mao et al., 2017), arXiv:1611.04076, eq. 9 (a = 0, b = c = 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from visual_tokenizer.adversarial_losses.base import AdversarialLoss, AdversarialLossConfig


@dataclass(kw_only=True)
class LeastSquaresConfig(AdversarialLossConfig):
    """The least-squares loss has no fields."""


class LeastSquares(AdversarialLoss):
    """G: ½ E (D(x̂) − 1)². D: ½ (E (D(x) − 1)² + E D(x̂)²)."""

    Config = LeastSquaresConfig
    boundary: ClassVar[float] = 0.5

    def generator(self, fake: Tensor) -> Tensor:
        return (fake - 1).square().mean() / 2

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return ((real - 1).square().mean() + fake.square().mean()) / 2
