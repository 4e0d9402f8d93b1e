"""What every pair of adversarial losses has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class AdversarialLossConfig(PartConfig, package="visual_tokenizer.adversarial_losses"):
    """Fields that every pair of losses has (none)."""


class AdversarialLoss:
    """The losses of generator and discriminator as functions of logits of any shape."""

    Config: ClassVar[type[AdversarialLossConfig]]
    boundary: ClassVar[float] = 0.0
    """The logit above which a picture counts as judged real."""

    def __init__(self, config: AdversarialLossConfig) -> None:
        self.config: Any = config

    def generator(self, fake: Tensor) -> Tensor:
        """Return what the generator minimises, a scalar, given the logits of reconstructions."""
        raise NotImplementedError

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        """Return what the discriminator minimises, a scalar."""
        raise NotImplementedError


PART = AdversarialLoss
