"""What every training objective has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from visual_tokenizer.errors import UserError
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class WeightSchedule:
    """A weight that changes in training: it stays what it is, then goes in a straight line to another, and stays."""

    final_weight: float
    """Weight at the end; 0 or more."""

    start_step: int = 0
    """Last step of the first weight; 0 or more."""

    ramp_steps: int = 0
    """Steps from the first weight to the last; 0: the step after `start_step` has the last."""

    def __post_init__(self) -> None:
        for name in ("final_weight", "start_step", "ramp_steps"):
            if not getattr(self, name) >= 0:
                raise UserError(f"schedule.{name} must be 0 or more, got {getattr(self, name)}")

    def weight(self, first: float, step: Tensor) -> Tensor:
        """Return the weight of `step`, a float32 scalar on its device; nothing waits for it.

        Args:
            first: weight up to `start_step`.
            step: int64 scalar, 0 for the first.
        """
        progress = ((step - self.start_step).float() / max(self.ramp_steps, 1)).clamp(0, 1)
        return first + (self.final_weight - first) * progress


@dataclass(kw_only=True)
class LossConfig(PartConfig, package="visual_tokenizer.losses"):
    """Fields that every loss has."""

    weight: float = 1.0
    """Factor on the loss before it is added to the others; 0 or more."""

    schedule: WeightSchedule | None = None
    """How `weight` changes over the steps; null: not at all."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UserError(f"weight must be 0 or more, got {self.weight}")

    @property
    def wants_teacher(self) -> bool:
        """Whether the loss learns from the recipe's teacher: its constructor then takes `teacher`."""
        return False


class Loss(nn.Module):
    """One term of the tokenizer's objective."""

    Config: ClassVar[type[LossConfig]]

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config: Any = config

    def watch(self, tokenizer: nn.Module) -> None:
        """Look at what the loss needs of the tokenizer that is trained with it, once, before the first step."""

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the unweighted loss, a scalar.

        Args:
            output: what the tokenizer made of `batch["pixels"]`.
            batch: `pixels` (B, 3, H, W) in [-1, 1], and whatever else the data gives (`caption`, …).
        """
        raise NotImplementedError


PART = Loss
