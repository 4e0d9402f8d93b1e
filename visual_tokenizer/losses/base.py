"""What every training objective has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class LossConfig(PartConfig, package="visual_tokenizer.losses"):
    """Fields that every loss has."""

    weight: float = 1.0
    """Factor on the loss before it is added to the others; 0 or more."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight must be 0 or more, got {self.weight}")


class Loss(nn.Module):
    """One term of the tokenizer's objective."""

    Config: ClassVar[type[LossConfig]]

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config: Any = config

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the unweighted loss, a scalar.

        Args:
            output: what the tokenizer made of `batch["pixels"]`.
            batch: `pixels` (B, 3, H, W) in [-1, 1], and whatever else the data gives (`caption`, …).
        """
        raise NotImplementedError


PART = Loss
