"""The folder `final/` of a run: everything a user loads, complete or absent."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from visual_tokenizer.data.transforms import RESIZE_FILTERS
from visual_tokenizer.evaluation.reconstruction import bits_per_picture
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.processing import VisualTokenizerImageProcessor
from visual_tokenizer.recipe import save_recipe
from visual_tokenizer.runs.files import whole_folder
from visual_tokenizer.training.recipe import TokenizerRecipe

_TEMPLATE = """---
{header}
---

# {title}

A visual tokenizer: it turns a picture of {size} × {size} pixels into {tokens} tokens of a codebook of
{codebook_size}, and back.

![Held-out pictures, each above its reconstruction](samples.png)

| | |
|---|---|
{facts}

## Quality

{quality}

## Use

```python
from PIL import Image
from visual_tokenizer import VisualTokenizer
from visual_tokenizer.processing import VisualTokenizerImageProcessor

processor = VisualTokenizerImageProcessor.from_pretrained("path/to/this/folder")
tokenizer = VisualTokenizer.from_pretrained("path/to/this/folder")
pixels = processor(Image.open("picture.png"), return_tensors="pt").pixel_values
indices = tokenizer.encode(pixels)
picture = processor.postprocess(tokenizer.decode(indices))[0]
```

## Data

Trained on `{source}` for {steps} steps of {batch_size} pictures. {attribution}

Everything the run depended on is in `recipe.yaml`.
"""


def model_card(
    tokenizer: VisualTokenizer,
    recipe: TokenizerRecipe,
    metrics: Mapping[str, float],
    *,
    attribution: str,
    steps: int,
) -> ModelCard:
    """Describe a trained tokenizer after `steps` optimiser steps of `recipe`.

    `metrics`, by name on held-out pictures, may be empty; `attribution` is what the licence of the pictures asks for.
    """
    grid = tokenizer.token_grid()
    facts = {
        "Encoder": f"`{recipe.encoder.type}`",
        "Quantizer": f"`{recipe.quantizer.type}`",
        "Decoder": f"`{recipe.decoder.type}`",
        "Losses": ", ".join(f"{loss.weight:g} × `{loss.type}`" for loss in recipe.losses),
        "Codebook size": f"{tokenizer.codebook_size:,}",
        "Indices a position": f"{tokenizer.num_codebooks}",
        "Tokens a picture": f"{math.prod(grid)} ({' × '.join(map(str, grid))})",
        "Bits a picture, at most": f"{bits_per_picture(tokenizer, recipe.image_size):.1f}",
        "Parameters": f"{sum(parameter.numel() for parameter in tokenizer.parameters()):,}",
        "Weights": "averaged over the steps" if recipe.training.ema_decay > 0 else "of the last step",
    }
    rows = "\n".join(f"| `{name}` | {value:.4g} |" for name, value in sorted(metrics.items()))
    header = ModelCardData(library_name="transformers", tags=["visual-tokenizer", recipe.quantizer.type])
    return ModelCard(
        _TEMPLATE.format(
            header=header.to_yaml(),
            title=f"Visual tokenizer {recipe.encoder.type} + {recipe.quantizer.type}",
            size=recipe.image_size,
            tokens=math.prod(grid) * tokenizer.num_codebooks,
            codebook_size=f"{tokenizer.codebook_size:,}",
            facts="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
            quality=f"| metric | value |\n|---|---|\n{rows}" if rows else "Not measured.",
            source=recipe.data.source.type,
            steps=f"{steps:,}",
            batch_size=recipe.training.batch_size,
            attribution=attribution,
        )
    )


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
