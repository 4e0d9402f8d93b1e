"""The folder `final/` of a run: everything a user loads, complete or absent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from visual_tokenizer.data.transforms import RESIZE_FILTERS
from visual_tokenizer.model_card import model_card
from visual_tokenizer.processing import VisualTokenizerImageProcessor
from visual_tokenizer.recipe import save_recipe
from visual_tokenizer.runs.files import whole_folder
from visual_tokenizer.runs.processes import on_first_process

if TYPE_CHECKING:
    from visual_tokenizer.training import TokenizerTrainer


def export_tokenizer(trainer: TokenizerTrainer) -> Path:
    """Write `final/`: weights, configs, recipe, model card and a grid of samples; an earlier one is replaced."""
    target = trainer.folder / "final"
    on_first_process(trainer.accelerator, lambda: str(_write(trainer, target)))
    trainer.say(f"saved {target}")
    return target


def _write(trainer: TokenizerTrainer, target: Path) -> Path:
    recipe = trainer.recipe
    with whole_folder(target, existing="replace") as beside:
        trainer.exported.save_pretrained(beside)
        side = {"height": recipe.image_size, "width": recipe.image_size}
        resample = RESIZE_FILTERS[recipe.data.transform.resize_filter]
        VisualTokenizerImageProcessor(size=side, resample=resample).save_pretrained(beside)
        save_recipe(recipe, beside)
        grids = sorted((trainer.folder / "samples").glob("step-*.png"))
        if grids:
            shutil.copyfile(grids[-1], beside / "samples.png")
        card = model_card(
            trainer.exported,
            recipe,
            _last_metrics(trainer),
            attribution=trainer.source.attribution,
            steps=trainer.step,
        )
        card.save(beside / "README.md")
    return target


def _last_metrics(trainer: TokenizerTrainer) -> dict[str, float]:
    """Return the newest evaluation of the log, which an earlier part of the run may have written."""
    found: dict[str, float] = {}
    for entry in trainer.log.read():
        found |= {name.removeprefix("heldout/"): value for name, value in entry.items() if name.startswith("heldout/")}
    return found
