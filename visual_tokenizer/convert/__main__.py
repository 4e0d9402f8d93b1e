"""Entry point: `python -m visual_tokenizer.convert --source vqgan --input model.ckpt --output DIR`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from visual_tokenizer.convert.conversion import MissingDecoderWarning, build_source, load_published
from visual_tokenizer.convert.writing import write_tokenizer
from visual_tokenizer.errors import program
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.recipe import parse_arguments

PROGRAM = "python -m visual_tokenizer.convert"

ABOUT = """\
Turn the weights of a published tokenizer into a folder that VisualTokenizer.from_pretrained loads.

Sources: chameleon, dalle, emu3, ibq, janus, llamagen, open_magvit2, titok, vqgan.

Examples:
  python -m visual_tokenizer.convert --source vqgan --input last.ckpt --output DIR
  python -m visual_tokenizer.convert --source emu3 --input Emu3-VisionTokenizer --output DIR
  python -m visual_tokenizer.convert --source chameleon --input chameleon-7b --decoder vqgan.ckpt --output DIR
  python -m visual_tokenizer.convert --source titok --input model.safetensors --output DIR --options.normalize true

Exit codes: 0 done; 2 usage or input error."""


@dataclass(kw_only=True)
class ConvertRecipe(Section):
    """Which weights, from whom, and where to."""

    source: str
    """Name of the published tokenizer: chameleon, dalle, emu3, ibq, janus, llamagen, open_magvit2, titok, vqgan."""

    input: str
    """File (safetensors, or a torch file that holds tensors only) or folder with the weights."""

    output: str
    """Folder to write."""

    decoder: str | None = None
    """File or folder with the decoder's weights, where they are published by themselves."""

    image_size: Annotated[int, Ge(1)] | None = None
    """Nominal side of a picture in pixels; null: what is found beside the weights, else the published one."""

    options: dict[str, Any] = field(default_factory=dict)
    """Further fields of the source, such as `use_averages` of ibq and open_magvit2 or `normalize` of titok."""


def convert(recipe: ConvertRecipe) -> None:
    """Load, and write the folder."""
    fields = {**recipe.options, "image_size": recipe.image_size}
    tokenizer = load_published(recipe.input, recipe.source, decoder=recipe.decoder, **fields)
    write_tokenizer(tokenizer, build_source(recipe.source, **fields), Path(recipe.output))


@program(PROGRAM)
def main(arguments: Sequence[str]) -> int:
    """Convert by the command line's arguments; return 0, or 2 where the user has to put something right."""
    recipe = parse_arguments(ConvertRecipe, arguments, program=PROGRAM, about=ABOUT)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MissingDecoderWarning)
        convert(recipe)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    print(f"saved {recipe.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
