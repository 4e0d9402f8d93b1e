"""What becomes of codes that nobody uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class ReseederConfig(PartConfig, package="visual_tokenizer.codebooks.reseeders"):
    """When a code counts as dead and how often that is looked at."""

    usage_below: float = 0.01
    """A code is dead if its running share of the assignments is below this fraction of 1/K; in (0, 1)."""

    every_steps: int = 100
    """Training steps between two looks; 1 or more."""

    def __post_init__(self) -> None:
        if not 0 < self.usage_below < 1:
            raise ValueError(f"usage_below must be in (0, 1), got {self.usage_below}")
        if self.every_steps < 1:
            raise ValueError(f"every_steps must be 1 or more, got {self.every_steps}")


class Reseeder:
    """Chooses replacements for dead codes."""

    Config: ClassVar[type[ReseederConfig]]

    def __init__(self, config: ReseederConfig) -> None:
        self.config: Any = config

    def replacements(self, latents: Tensor, errors: Tensor, count: int) -> Tensor:
        """Return at most `count` new codes, (count, C), the same on every rank.

        Args:
            latents: (M, C) of this rank's batch.
            errors: (M,) squared distance of each latent to its code.
            count: how many codes are dead.
        """
        raise NotImplementedError


PART = Reseeder
