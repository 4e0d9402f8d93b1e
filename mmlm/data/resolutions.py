"""A curriculum of picture sizes: the sequences of a step are made from pictures tokenized at the size of its stage."""

from __future__ import annotations

import bisect
import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from mmlm.data.pairs import PairOptions, PairSequences
from mmlm.data.tokenize import shards_of
from mmlm.lm_recipe import LMRecipe
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.encoders.base import ResolutionError
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import ConfigError


class StagedSequences(Dataset):
    """Sequences of one set until a position, then of the next, as if each set had been read from the beginning.

    Position p is item p of the set in whose range it falls, so sets of the same pictures in several sizes give the
    pictures in one order, whatever the size.

    Args:
        sets: one a stage.
        ends: position at which each stage but the last ends, in ascending order.
    """

    def __init__(self, sets: Sequence[PairSequences], ends: Sequence[int]) -> None:
        if len(sets) != len(ends) + 1 or list(ends) != sorted(set(ends)):
            raise UserError(f"sets must be one more than the ascending ends, got {len(sets)} sets and ends {ends}")
        self.sets, self.ends = list(sets), list(ends)
        self.length = len(sets[0])

    def __len__(self) -> int:
        return self.length

    def stage_of(self, position: int) -> int:
        """Return the number of the stage in which a position falls."""
        return bisect.bisect_right(self.ends, position)

    def check_length(self, max_positions: int) -> None:
        """Raise `UserError` if the longest sequence of any stage has more than `max_positions` tokens."""
        for one in self.sets:
            one.check_length(max_positions)

    def lengths(self, positions: Sequence[int]) -> np.ndarray:
        """Return the tokens of each item (n,) int64, without making it."""
        return np.array([self.sets[self.stage_of(int(p))].lengths([p])[0] for p in positions], np.int64)

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Return the items of a batch; those of one stage are made together."""
        stages = [self.stage_of(int(position)) for position in positions]
        made = {
            stage: iter(
                self.sets[stage].__getitems__([p for p, s in zip(positions, stages, strict=True) if s == stage])
            )
            for stage in set(stages)
        }
        return [next(made[stage]) for stage in stages]


def at_size(processor: MultimodalProcessor, image_size: int) -> MultimodalProcessor:
    """Return a processor that shares everything but reads pictures at another size, in pixels.

    Raises:
        ConfigError: the visual tokenizer cannot take that size.
    """
    codec = processor.codec
    if codec is not None:
        try:
            with torch.no_grad():
                codec.encode(torch.zeros(1, 3, image_size, image_size, device=codec.device, dtype=codec.dtype))
        except ResolutionError as error:
            raise ConfigError(
                f"data.resolutions.image_size must be a size that the visual tokenizer takes, got {image_size}: {error}"
            ) from error
    resized = copy.copy(processor)
    resized.image_processor = copy.deepcopy(processor.image_processor)
    size = {"height": image_size, "width": image_size}
    resized.image_processor.size = resized.image_processor.crop_size = size
    return resized


def with_shards_of_size(recipe: LMRecipe, image_size: int) -> LMRecipe:
    """Return the recipe with its shards in a folder of that size, so that no size takes another's."""
    folder = str(Path(recipe.data.shards_dir) / f"{image_size}px")
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, shards_dir=folder))


def at_last_size(processor: MultimodalProcessor, recipe: LMRecipe) -> tuple[MultimodalProcessor, LMRecipe]:
    """Return processor and recipe as the last stage has them; both as they are where there is none."""
    stages = recipe.data.resolutions
    if not stages:
        return processor, recipe
    size = stages[-1].image_size
    return at_size(processor, size), with_shards_of_size(recipe, size)


def staged_sequences(processor: MultimodalProcessor, recipe: LMRecipe, options: PairOptions) -> StagedSequences:
    """Return the training set of a recipe with `data.resolutions`, tokenizing what is not there.

    Raises:
        ConfigError: a size that the visual tokenizer cannot take.
        ShardError: see `shards_of`.
    """
    stages = recipe.data.resolutions
    readers = [at_size(processor, stage.image_size) for stage in stages]  # all are looked at before any is tokenized
    sets = []
    for reader, stage in zip(readers, stages, strict=True):
        shards = shards_of(reader, with_shards_of_size(recipe, stage.image_size), recipe.data.train_split)
        sets.append(PairSequences(shards, processor.layout, options))
    steps = [stage.until_step for stage in stages[:-1]]
    return StagedSequences(sets, [step * recipe.training.batch_size for step in steps if step is not None])
