"""The folder `final/` of a run: everything a user loads, complete or absent."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visual_tokenizer.data.transforms import RESIZE_FILTERS
from visual_tokenizer.model_card import model_card
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.processing import VisualTokenizerImageProcessor
from visual_tokenizer.recipe import save_recipe
from visual_tokenizer.runs.files import whole_folder
from visual_tokenizer.training_recipe import TokenizerRecipe


def export_tokenizer(
    target: Path,
    tokenizer: VisualTokenizer,
    recipe: TokenizerRecipe,
    *,
    log: Sequence[Mapping[str, Any]],
    samples: Path,
    attribution: str,
    steps: int,
) -> None:
    """Write weights, configs, recipe, model card and a grid of samples to a folder; an earlier one is replaced.

    Args:
        target: the folder.
        tokenizer: what was trained.
        recipe: what it was trained by.
        log: entries of log.jsonl, whose newest evaluation goes to the card.
        samples: folder of grids `step-*.png`; the last one is copied.
        attribution: what the licence of the pictures asks for.
        steps: optimiser steps.
    """
    with whole_folder(target, existing="replace") as beside:
        tokenizer.save_pretrained(beside)
        side = {"height": recipe.image_size, "width": recipe.image_size}
        resample = RESIZE_FILTERS[recipe.data.transform.resize_filter]
        VisualTokenizerImageProcessor(size=side, resample=resample).save_pretrained(beside)
        save_recipe(recipe, beside)
        grids = sorted(samples.glob("step-*.png"))
        if grids:
            shutil.copyfile(grids[-1], beside / "samples.png")
        card = model_card(tokenizer, recipe, _last_metrics(log), attribution=attribution, steps=steps)
        card.save(beside / "README.md")


def _last_metrics(log: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the newest evaluation of the log, which an earlier part of the run may have written."""
    found: dict[str, float] = {}
    for entry in log:
        found |= {name.removeprefix("heldout/"): value for name, value in entry.items() if name.startswith("heldout/")}
    return found
