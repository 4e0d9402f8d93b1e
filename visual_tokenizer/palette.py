"""Entry point: `python -m visual_tokenizer.palette --output DIR`: a tokenizer whose codes are colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge
from tqdm import tqdm

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.data.batches import DataSection, PictureSet
from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.data.transforms import RESIZE_FILTERS
from visual_tokenizer.errors import program
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.processing import VisualTokenizerImageProcessor
from visual_tokenizer.recipe import parse_arguments, save_recipe
from visual_tokenizer.runs.files import whole_folder

PROGRAM = "python -m visual_tokenizer.palette"

ABOUT = """\
Make the colour palette of image GPT: k-means of the pixels of a set of pictures; each pixel becomes one token, its
nearest colour. The result is a visual tokenizer like any other, without anything to train.

Examples:
  python -m visual_tokenizer.palette --output run/palette
  python -m visual_tokenizer.palette --output run/palette --colours 512 --image_size 32 \\
    --data.source.type image_folder --data.source.folder pictures"""


@dataclass(kw_only=True)
class PaletteRecipe(Section):
    """How many colours, of which pictures."""

    output: str
    """Folder of the tokenizer."""

    colours: Annotated[int, Ge(2)] = 512
    """Colours in the palette. Image GPT has 512: 9 bits a pixel."""

    image_size: Annotated[int, Ge(1)] = 32
    """Side of a picture in pixels, each of which is a token. Image GPT has 32, 48 and 64."""

    data: DataSection = field(default_factory=DataSection)
    """Pictures; those of the split `train` are looked at."""

    max_pixels: Annotated[int, Ge(2)] = 262144
    """Pixels that are clustered, at most, the same number from each picture."""

    iterations: Annotated[int, Ge(1)] = 20
    """k-means iterations."""

    seed: Annotated[int, Ge(0)] = 0
    """Seed of the draw of pixels and of k-means."""


@torch.no_grad()
def build_palette(recipe: PaletteRecipe) -> VisualTokenizer:
    """Cluster the pixels and return the tokenizer.

    Source: Generative Pretraining from Pixels (Chen et al., 2020), section 3.2. Distances are those of RGB values.
    """
    initializer = {
        "type": "kmeans",
        "samples": recipe.max_pixels,
        "iterations": recipe.iterations,
        "seed": recipe.seed,
    }
    quantizer = {
        "type": "vq",
        "codebook_size": recipe.colours,
        "code_dim": 3,
        "commitment_weight": 0.0,
        "update": {"type": "frozen"},
        "initializer": initializer,
    }
    pixels_themselves = {"type": "pixels"}
    tokenizer = VisualTokenizer(
        VisualTokenizerConfig(
            image_size=recipe.image_size, encoder=pixels_themselves, quantizer=quantizer, decoder=pixels_themselves
        )
    )
    source = SourceConfig.family.build(recipe.data.source)
    pictures = PictureSet(source, "train", recipe.data, image_size=recipe.image_size, max_pictures=None)
    generator = torch.Generator().manual_seed(recipe.seed)
    pool = []
    for batch in tqdm(pictures.batches(64), desc="pixels", unit="batch"):
        pixels = tokenizer.latents(batch["pixels"])
        order = torch.rand(pixels.shape[:2], generator=generator).argsort(dim=1)
        pool.append(pixels.gather(1, order[..., None].expand_as(pixels)))
    # Picture by picture in turn, so that each gives the same number.
    mixed = torch.cat(pool).transpose(0, 1).reshape(-1, 3)[: recipe.max_pixels]
    tokenizer.quantizer.initialize(mixed)
    return tokenizer.eval()


@program(PROGRAM)
def main(arguments: Sequence[str]) -> int:
    """Make a palette by the command line's arguments; return 0, or 2 where the user has to put something right."""
    recipe = parse_arguments(PaletteRecipe, arguments, program=PROGRAM, about=ABOUT)
    palette = build_palette(recipe)
    side = {"height": recipe.image_size, "width": recipe.image_size}
    resample = RESIZE_FILTERS[recipe.data.transform.resize_filter]
    with whole_folder(recipe.output, existing="fill") as folder:
        palette.save_pretrained(folder)
        VisualTokenizerImageProcessor(size=side, resample=resample).save_pretrained(folder)
        save_recipe(recipe, folder)  # its data section is what `visual_tokenizer.evaluate` measures on
    print(f"saved {recipe.output}: {recipe.colours} colours")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
