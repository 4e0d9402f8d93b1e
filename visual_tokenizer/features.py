"""Entry point: `python -m visual_tokenizer.features --output FILE`: features that a codebook can begin with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from visual_tokenizer.backbones.base import Backbone, NetworkFields, check_layers, load_backbone
from visual_tokenizer.data.batches import DataSection, PictureSet
from visual_tokenizer.data.sources.base import SourceConfig, Split
from visual_tokenizer.errors import program
from visual_tokenizer.recipe import parse_arguments
from visual_tokenizer.runs.files import whole_file

PROGRAM = "python -m visual_tokenizer.features"

ABOUT = """\
Write the features of a frozen picture network to a file, from which the initializer `features` makes a codebook.

Examples:
  python -m visual_tokenizer.features --output features.safetensors
  python -m visual_tokenizer.features --output features.safetensors --level 2 --image_size 128 \\
    --data.source.type image_folder --data.source.folder pictures
  python -m visual_tokenizer.train --config RECIPE.yaml \\
    --quantizer.initializer "{type: features, path: features.safetensors}\""""


@dataclass(kw_only=True)
class FeaturesRecipe(NetworkFields):
    """Which features of which pictures."""

    renamed: ClassVar[Mapping[str, str | None]] = {"backbone": "network"}

    output: str
    """The safetensors file; it holds one tensor `features` (M, D)."""

    level: int = -1
    """Feature map that is taken, 0 the finest, -1 the coarsest; its places are the features."""

    data: DataSection = field(default_factory=DataSection)
    """Pictures."""

    split: Split = "train"
    """Part of the pictures."""

    image_size: Annotated[int, Ge(1)] = 64
    """Side of a picture in pixels."""

    max_pictures: Annotated[int, Ge(1)] | None = None
    """At most so many pictures; null for all."""

    max_features: Annotated[int, Ge(2)] = 65536
    """At most so many features, an equal number of each picture drawn at random."""

    batch_size: Annotated[int, Ge(1)] = 32
    """Pictures of one pass."""

    seed: Annotated[int, Ge(0)] = 0
    """Seed of the draw."""


@torch.no_grad()
def write_features(recipe: FeaturesRecipe) -> Tensor:
    """Write the file and return its features (M, D)."""
    network: Backbone = load_backbone(recipe.network, recipe.weights)
    level = recipe.level if recipe.level >= 0 else len(network.feature_dims) + recipe.level
    check_layers([level], network)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    source = SourceConfig.family.build(recipe.data.source)
    pictures = PictureSet(
        source, recipe.split, recipe.data, image_size=recipe.image_size, max_pictures=recipe.max_pictures
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    found: list[Tensor] = []
    for batch in tqdm(pictures.batches(recipe.batch_size), desc="features", unit="batch"):
        maps = network.features(batch["pixels"].to(device), level + 1)[level].flatten(2).mT.cpu()
        found.extend(places[torch.randperm(places.shape[0], generator=generator)] for places in maps)
    each = math.ceil(recipe.max_features / len(found))
    features = torch.cat([places[:each] for places in found])[: recipe.max_features].contiguous()
    with whole_file(recipe.output) as unfinished:
        save_file({"features": features}, unfinished, metadata={"backbone": recipe.network, "level": str(level)})
    return features


@program(PROGRAM)
def main(arguments: Sequence[str]) -> int:
    """Write features by the command line's arguments; return 0, or 2 where the user has to put something right."""
    recipe = parse_arguments(FeaturesRecipe, arguments, program=PROGRAM, about=ABOUT)
    features = write_features(recipe)
    print(f"wrote {features.shape[0]} features of {features.shape[1]} channels to {recipe.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
