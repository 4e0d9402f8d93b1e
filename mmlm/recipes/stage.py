"""What of a recipe changes while a training goes on: which weights move, and the size of the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Len

from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Section

NEW_ROWS = "new_rows"
"""In training.freeze: the rows of visual and structural tokens, of the table and of an untied head."""


@dataclass(kw_only=True)
class FreezeStage(Section):
    """A stage of the training in which only a part of the weights moves."""

    until_step: Annotated[int, Ge(1)]
    """Optimizer steps, counted from the beginning of the run, after which the stage is over."""
    train: Annotated[list[str], Len(1)] = field(default_factory=lambda: [NEW_ROWS])
    """What moves: new_rows (those of visual and structural tokens, of the table and of an untied head), and names of
    weights, in which * stands for anything."""


@dataclass(kw_only=True)
class ResolutionStage(Section):
    """A stage of a curriculum of picture sizes."""

    image_size: Annotated[int, Ge(1)]
    """Height and width in pixels at which pictures are tokenized; one that the visual tokenizer takes."""
    until_step: Annotated[int, Ge(1)] | None = None
    """Optimizer steps, counted from the beginning of the run, after which the next stage begins; null for the last."""


def check_freeze_stages(stages: Sequence[FreezeStage]) -> None:
    """Raise `UserError` unless each stage ends later than the one before."""
    ends = [stage.until_step for stage in stages]
    if ends != sorted(set(ends)):
        raise UserError(f"freeze must be stages of which each ends later than the one before, got {ends}")


def check_resolution_stages(stages: Sequence[ResolutionStage], *, packing: bool, mixture: bool) -> None:
    """Raise `UserError` unless each stage ends later than the one before and the last one never, or where rows are
    packed or documents are read."""
    ends = [stage.until_step for stage in stages]
    known = [end for end in ends[:-1] if end is not None]
    ascend = len(known) == len(ends[:-1]) and known == sorted(set(known))
    if not ascend or ends[-1:] not in ([], [None]):
        raise UserError(
            f"resolutions: until_step must rise from stage to stage, with null for the last one alone, got {ends}"
        )
    if stages and packing:
        raise UserError(
            "packing must be false where there is resolutions, got true: a packed row may hold sequences of many steps"
        )
    if stages and mixture:
        raise UserError("resolutions must be empty where there is mixture: only pairs have several sizes")
