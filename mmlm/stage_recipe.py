"""What of a recipe changes while a training goes on: which weights move, and the size of the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from visual_tokenizer.registry import ConfigError

NEW_ROWS = "new_rows"
"""In training.freeze: the rows of visual and structural tokens, of the table and of an untied head."""


@dataclass(kw_only=True)
class FreezeStage:
    """A stage of the training in which only a part of the weights moves."""

    until_step: int
    """Optimizer steps, counted from the beginning of the run, after which the stage is over; 1 or more."""
    train: list[str] = field(default_factory=lambda: [NEW_ROWS])
    """What moves: new_rows (those of visual and structural tokens, of the table and of an untied head), and names of
    weights, in which * stands for anything."""

    def __post_init__(self) -> None:
        if self.until_step < 1:
            raise ConfigError(f"training.freeze.until_step must be 1 or more, got {self.until_step}")
        if not self.train:
            raise ConfigError("training.freeze.train must be one name or more, got []")


@dataclass(kw_only=True)
class ResolutionStage:
    """A stage of a curriculum of picture sizes."""

    image_size: int
    """Height and width in pixels at which pictures are tokenized; one that the visual tokenizer takes."""
    until_step: int | None = None
    """Optimizer steps, counted from the beginning of the run, after which the next stage begins; null for the last."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ConfigError(f"data.resolutions.image_size must be 1 or more, got {self.image_size}")


def check_freeze_stages(stages: Sequence[FreezeStage]) -> None:
    """Raise `ConfigError` unless each stage ends later than the one before."""
    ends = [stage.until_step for stage in stages]
    if ends != sorted(set(ends)):
        raise ConfigError(f"training.freeze must be stages of which each ends later than the one before, got {ends}")


def check_resolution_stages(stages: Sequence[ResolutionStage], *, packing: bool, mixture: bool) -> None:
    """Raise `ConfigError` unless each stage ends later than the one before and the last one never, or where rows are
    packed or documents are read."""
    ends = [stage.until_step for stage in stages]
    known = [end for end in ends[:-1] if end is not None]
    ascend = len(known) == len(ends[:-1]) and known == sorted(set(known)) and min(known, default=1) >= 1
    if not ascend or ends[-1:] not in ([], [None]):
        raise ConfigError(
            "data.resolutions.until_step must be 1 or more and rise from stage to stage, with null for the last one "
            f"alone, got {ends}"
        )
    if stages and packing:
        raise ConfigError(
            "data.packing must be false where there is data.resolutions, got true: a packed row may hold sequences of "
            "several steps"
        )
    if stages and mixture:
        raise ConfigError("data.resolutions must be empty where there is data.mixture: only pairs have several sizes")
