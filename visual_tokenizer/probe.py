"""Entry point: `python -m visual_tokenizer.probe --model DIR`: measure a pre-trained model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Len

from visual_tokenizer.errors import program
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.pretraining.evaluation import (
    measure,
    show,
)
from visual_tokenizer.pretraining.recipe import PretrainingRecipe
from visual_tokenizer.recipe import parse_arguments, read_recipe
from visual_tokenizer.runs.files import require_folder

PROGRAM = "python -m visual_tokenizer.probe"

ABOUT = """\
Measure a model that was pre-trained on a visual tokenizer's indices: loss and accuracy of masked tokens of held-out
pictures, and kNN and linear accuracy of its frozen features on labels, beside random weights and beside pixels. Data
and masks are those of the recipe.yaml beside the weights.

Examples:
  python -m visual_tokenizer.probe --model run/openmoji_beit/final
  python -m visual_tokenizer.probe --model run/openmoji_beit/final --label_column subgroup --layers "[2, 4, 6]"
  python -m visual_tokenizer.probe --model run/openmoji_beit/final --label_column null --output masked.json"""


@dataclass(kw_only=True)
class ProbeRecipe(Section):
    """What is measured."""

    model: str
    """Folder `final/` of a pre-training run."""

    label_column: str | None = "group"
    """Column of the source that holds the labels; null: features are not judged."""

    layers: Annotated[list[Annotated[int, Ge(1)]], Len(1)] | None = None
    """Blocks whose patches are averaged, counted from 1; null: as the recipe beside the weights says."""

    output: str | None = None
    """JSON file of the results; null: `probe.json` in the folder of the model. The grid of pictures is beside it."""


@program(PROGRAM)
def main(arguments: Sequence[str]) -> int:
    """Measure by the command line's arguments; return 0, or 2 where the user has to put something right."""
    asked = parse_arguments(ProbeRecipe, arguments, program=PROGRAM, about=ABOUT)
    require_folder(Path(asked.model), "a pre-trained model")
    folder = Path(asked.model)
    recipe = read_recipe(PretrainingRecipe, folder / "recipe.yaml", {})
    layers = recipe.probe.layers if asked.layers is None else asked.layers
    probed = dataclasses.replace(recipe.probe, label_column=asked.label_column, layers=layers)
    recipe = dataclasses.replace(recipe, probe=probed)
    show(measure(folder, recipe, Path(asked.output or folder / "probe.json"))["metrics"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
