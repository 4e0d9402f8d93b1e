"""`mmlm evaluate` and `mmlm parts`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mmlm.commands.registration import (
    RECIPE_WORDS,
    CommandLineError,
    ModelOption,
    be_quiet,
    command,
    recipe_words,
)


@command("evaluate", context_settings=RECIPE_WORDS)
def evaluate(
    context: typer.Context,
    model: ModelOption,
    recipe_file: Annotated[
        str | None,
        typer.Option("--recipe", help="Training recipe whose data.source is taken, e.g. RUN/recipe.yaml."),
    ] = None,
    num_prompts: Annotated[int, typer.Option("--num-prompts", help="Captions that are drawn.")] = 64,
    out: Annotated[str | None, typer.Option("--out", help="Folder for the results; default: the model's.")] = None,
) -> None:
    """Draw training captions and look the drawings up among the training pictures; also losses.

    Writes evaluation.json (numbers and protocol) and evaluation.png (drawing and original side by side).
    The pictures are those of --recipe, or --data.type NAME with --data.field VALUE. Other fields: --field VALUE.

    [bold]Examples[/bold]

      mmlm evaluate --model runs/lm/openmoji/final --recipe runs/lm/openmoji/recipe.yaml

      mmlm evaluate --model runs/lm/final --data.type openmoji --guidance_scale 5 --out results
    """
    from mmlm.evaluate import EvaluationRecipe, evaluate_by_recipe
    from visual_tokenizer.recipe import parse_arguments

    be_quiet()
    given = {
        "model": model,
        "output_dir": model if out is None else out,
        "num_prompts": num_prompts,
        "data": None if recipe_file is None else json.dumps(_source_of(recipe_file)),
    }
    words = recipe_words(None, given) + context.args
    if not any(word.startswith("--data") for word in words):
        raise CommandLineError("no pictures to compare with: give --recipe FILE or --data.type NAME")
    recipe = parse_arguments(EvaluationRecipe, words, program="mmlm evaluate", about=evaluate.__doc__ or "")
    result = evaluate_by_recipe(recipe, show_progress=True)
    for name in ("generated", "reconstructed", "chance"):
        accuracy = getattr(result, name)
        print(f"{name:14} top-1 {accuracy.top1:6.1%}   top-5 {accuracy.top5:6.1%}")
    for split, losses in result.losses.items():
        print(
            f"{split:14} " + "   ".join(f"{k} {v:.3f}" for k, v in losses.items() if v is not None) + "  nats a token"
        )
    print(Path(recipe.output_dir, "evaluation.json"))


def _source_of(recipe_file: str) -> dict[str, Any]:
    import yaml

    if not Path(recipe_file).is_file():
        raise CommandLineError(f"--recipe: no file {recipe_file!r}")
    recipe = yaml.safe_load(Path(recipe_file).read_text(encoding="utf-8"))
    try:
        return recipe["data"]["source"]
    except (KeyError, TypeError) as error:
        raise CommandLineError(f"--recipe: {recipe_file} has no data.source: give a training recipe") from error


@command("parts")
def parts() -> None:
    """List every part that a recipe can name, plugins included.

    Parts of your own are found in the folders of the environment variable VISUAL_TOKENIZER_PLUGINS.
    """
    from mmlm.parts import list_parts

    for family, names in list_parts().items():
        typer.secho(family, bold=True)
        width = max(map(len, names))
        for name, meaning in names.items():
            print(f"  {name:{width}}  {meaning}")
