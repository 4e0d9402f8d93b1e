"""What every training objective has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from torch import Tensor, nn

from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class WeightSchedule(Section):
    """A weight that changes in training: it stays what it is, then goes in a straight line to another, and stays."""

    final_weight: Annotated[float, Ge(0)]
    """Weight at the end."""

    start_step: Annotated[int, Ge(0)] = 0
    """Last step of the first weight."""

    ramp_steps: Annotated[int, Ge(0)] = 0
    """Steps from the first weight to the last; 0: the step after `start_step` has the last."""

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

    weight: Annotated[float, Ge(0)] = 1.0
    """Factor on the loss before it is added to the others."""

    schedule: WeightSchedule | None = None
    """How `weight` changes over the steps; null: not at all."""

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
