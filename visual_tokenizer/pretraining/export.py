"""final/: an ordinary BEiT of transformers, with image processor, tokenizer, recipe and model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import BeitForMaskedImageModeling, BeitImageProcessorPil, Trainer

from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.data.transforms import RESIZE_FILTERS
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.pretraining.recipe import PretrainingRecipe
from visual_tokenizer.recipe import save_recipe
from visual_tokenizer.runs.files import whole_folder

FINAL_NAME = "final"
TOKENIZER_NAME = "visual_tokenizer"

_CARD = """---
library_name: transformers
tags: [beit, masked-image-modeling, visual-tokenizer]
---

# BEiT, pre-trained to predict the tokens of a visual tokenizer

{parameters:,} weights; {size} × {size} pixels, {rows} × {rows} patches; trained on `{source}` for {steps:,} steps of
{batch} pictures. {attribution}

```python
from PIL import Image
from transformers import AutoImageProcessor, BeitModel

processor = AutoImageProcessor.from_pretrained("path/to/this/folder")
model = BeitModel.from_pretrained("path/to/this/folder", add_pooling_layer=False)
pixels = processor(Image.open("picture.png"), return_tensors="pt").pixel_values
features = model(pixels).last_hidden_state[:, 1:].mean(1)
```

`BeitForMaskedImageModeling` loads the head too; `visual_tokenizer/` is the frozen tokenizer whose indices it predicts.
What the run depended on is in `recipe.yaml`; `python -m visual_tokenizer.probe --model FOLDER` measures the model.
"""


def image_processor(image_size: int, resize_filter: str) -> BeitImageProcessorPil:
    """Return transformers' processor that makes the pixels, in [-1, 1], that the model was trained on."""
    return BeitImageProcessorPil(
        do_convert_rgb=True,
        do_resize=True,
        size={"shortest_edge": image_size},
        default_to_square=False,
        resample=RESIZE_FILTERS[resize_filter],
        do_center_crop=True,
        crop_size={"height": image_size, "width": image_size},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def save_final(trainer: Trainer, tokenizer: VisualTokenizer, recipe: PretrainingRecipe) -> Path:
    """Write `final/` below the output folder, whole or not at all; every process calls this.

    Args:
        trainer: after training; its weights are gathered from all shards. BEiT v2's second head is left out.
        tokenizer: goes beside the weights.
        recipe: what was trained.
    """
    target = Path(recipe.output_dir) / FINAL_NAME
    weights: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.args.should_save:
        model = BeitForMaskedImageModeling(trainer.accelerator.unwrap_model(trainer.model).config)
        kept = {name.removeprefix("_orig_mod."): weight for name, weight in weights.items()}
        model.load_state_dict({name: weight for name, weight in kept.items() if not name.startswith("aggregation.")})
        with whole_folder(target, existing="replace") as beside:
            model.save_pretrained(beside)
            image_processor(recipe.image_size, recipe.data.transform.resize_filter).save_pretrained(beside)
            tokenizer.save_pretrained(beside / TOKENIZER_NAME)
            save_recipe(recipe, beside)
            (beside / "README.md").write_text(_card(model, recipe), encoding="utf-8")
    trainer.accelerator.wait_for_everyone()
    return target


def _card(model: BeitForMaskedImageModeling, recipe: PretrainingRecipe) -> str:
    return _CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        size=recipe.image_size,
        rows=recipe.patch_grid[0],
        source=recipe.data.source.type,
        attribution=SourceConfig.family.get(recipe.data.source.type).attribution,
        steps=recipe.training.max_steps,
        batch=recipe.training.batch_size,
    )
