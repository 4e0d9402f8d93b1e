"""What the losses that compare something with a frozen network's features share: the network, and what it looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.backbones.base import NetworkHolder, WeightsFields
from visual_tokenizer.errors import UserError
from visual_tokenizer.losses.base import Loss, LossConfig
from visual_tokenizer.teacher import DEFAULT, Teacher, TeacherSection


@dataclass(kw_only=True)
class TaughtConfig(WeightsFields, LossConfig):
    """Fields of every such loss."""

    network: str | None = None
    """A network of the loss's own, named as `teacher.network`; null: the recipe's teacher or, where there is none,
    EfficientNet-Lite0."""

    weights: str | None = None
    """State dict of `network` (`transformers_vision`: folder or name); null: that of the installed package."""

    level: int | None = None
    """Level of the network that is taken, 0 the finest and -1 the coarsest or last; null: the embedding of the whole
    picture."""

    size: Annotated[int, Ge(32)] | None = None
    """Pixels of the shorter side that the network sees, whose coarsest stride is 32; null: what the teacher's section
    says or, where it says nothing, the embedding's own size, and pictures as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.network is None and self.weights is not None:
            raise UserError(f"weights must be null where network is, got {self.weights!r}")

    @property
    def wants_teacher(self) -> bool:
        return self.network is None


class Taught(NetworkHolder, Loss):
    """A loss that learns from `teacher`, or from a network of its own."""

    def __init__(self, config: TaughtConfig, teacher: Teacher | None = None) -> None:
        super().__init__(config)
        self.teacher = _own_teacher(config) if teacher is None else teacher
        self.hold(self.teacher.network)
        self.level = self.teacher.level(config.level)
        self.target_width = self.teacher.width(self.level)

    def target(self, batch: Mapping[str, Any]) -> Tensor:
        """Return the network's features, (B, C, h, w) float32 without gradient; h = w = 1 of an embedding."""
        return self.teacher.features(batch, self.level, self.config.size).float()


def _own_teacher(config: TaughtConfig) -> Teacher:
    if config.network == "transformers_vision":
        return Teacher(TeacherSection(network=config.weights or config.network))
    return Teacher(TeacherSection(network=config.network or DEFAULT, weights=config.weights))


def resized_map(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Bring (B, C, h, w) maps to `grid`: bilinear, antialiased when it shrinks."""
    if tuple(maps.shape[2:]) == grid:
        return maps
    shrinks = maps.shape[2] > grid[0] or maps.shape[3] > grid[1]
    return F.interpolate(maps, grid, mode="bilinear", align_corners=False, antialias=shrinks)
