"""Entry point: `python -m visual_tokenizer.probe --model DIR`: measure a pre-trained model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Len
from transformers import BeitForMaskedImageModeling

from visual_tokenizer.errors import program
from visual_tokenizer.evaluation.plots import save_picture
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.pretraining.batches import HeldoutPictures
from visual_tokenizer.pretraining.evaluation import (
    masking_of,
    measure_features,
    measure_masked_tokens,
    pictures_of,
    table,
)
from visual_tokenizer.pretraining.export import TOKENIZER_NAME
from visual_tokenizer.pretraining.masked_pictures import grid_of_rows, prediction_rows
from visual_tokenizer.pretraining.recipe import PretrainingRecipe
from visual_tokenizer.pretraining.targets import TokenTargets
from visual_tokenizer.recipe import parse_arguments, provenance, read_recipe
from visual_tokenizer.runs.files import require_folder, save_text
from visual_tokenizer.runs.saved_models import load_whole

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


def measure(folder: Path, recipe: PretrainingRecipe, output: Path) -> dict[str, Any]:
    """Measure a saved model, write the JSON file and the grid, and return what the file holds.

    Raises:
        UserError: the source has no labels of the recipe's `probe.label_column`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load = BeitForMaskedImageModeling.from_pretrained
    model, _ = load_whole(load, folder, "pre-trained model", model_type="beit", dtype=torch.float32)
    torch.nn.Module.to(model, device)
    tokenizer = VisualTokenizer.from_pretrained(folder / TOKENIZER_NAME, dtype=torch.float32)
    torch.nn.Module.to(tokenizer, device)
    targets = TokenTargets(tokenizer, recipe.tokenizer_image_size or tokenizer.config.image_size)
    pictures = pictures_of(recipe, "heldout", recipe.training.max_evaluation_pictures)
    heldout = HeldoutPictures(pictures, masking_of(recipe))
    values = measure_masked_tokens(model, targets, heldout, device)
    if recipe.probe.label_column is not None:
        values |= measure_features(model, recipe, device)
    report = {"model": str(folder), "metrics": values, "label_column": recipe.probe.label_column, **provenance()}
    save_text(json.dumps(report, indent=1) + "\n", output)
    pixels, mask = (part.to(device) for part in heldout.spread(recipe.training.sample_pictures))
    rows = prediction_rows(model, targets, pixels, mask, recipe.patch_grid)
    save_picture(grid_of_rows(rows), output.with_suffix(".png"))
    return report


def show(values: dict[str, float]) -> None:
    """Print what was measured."""
    print(f"masked tokens: {values['masked_accuracy']:.1%} right, {values['masked_loss']:.3f} nats")
    if "chance" in values:
        print(table(values))


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
