"""Recipe of a merge: which language model, which visual tokenizer, how they are joined, and where the result goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge
from transformers import PreTrainedModel

from mmlm.backbones.base import LMBackboneConfig, published_backbone
from mmlm.layouts.base import LayoutConfig
from mmlm.merging.merge import merge_vocabulary
from mmlm.processing import MultimodalProcessor
from visual_tokenizer import VisualTokenizer
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.processing import VisualTokenizerImageProcessor
from visual_tokenizer.recipe import save_recipe
from visual_tokenizer.runs.files import require_free, whole_folder


@dataclass(kw_only=True)
class MergeRecipe(Section):
    """Joins a language model and a visual tokenizer to one folder."""

    renamed: ClassVar[Mapping[str, str | None]] = {"output_dir": "output"}

    language_model: LMBackboneConfig
    """Where the language model and its text tokenizer come from."""
    visual_tokenizer: str | None = None
    """Folder of a trained visual tokenizer; null: the language model's own, where it is a published multimodal model
    (chameleon, emu3); layout, embedding_init, pad_to_multiple_of and seed are then the published model's."""
    output: str
    """Folder of the merged model; it must not exist, or be empty."""
    layout: LayoutConfig = field(default_factory=lambda: LayoutConfig.family.config({"type": "emu3"}))
    """How a picture sits in a sequence."""
    embedding_init: Literal["codebook", "mean", "random"] = "codebook"
    """Rows of the visual tokens; codebook makes them from the code vectors."""
    pad_to_multiple_of: Annotated[int, Ge(1)] = 64
    """The table's rows are rounded up to a multiple of this."""
    seed: Annotated[int, Ge(0)] = 0
    """Of the new rows."""
    smoke: dict[str, Any] = field(default_factory=dict)
    """Dotted overrides under which the recipe runs in seconds on a CPU; used by tests only."""


def merge_by_recipe(recipe: MergeRecipe) -> Path:
    """Load both models, merge them, and write the folder, complete or not at all.

    Raises:
        UserError: `output` holds something, or the two cannot be merged.
    """
    require_free(recipe.output)  # before the work, not after it
    if recipe.visual_tokenizer is None:
        model, processor = published_backbone(recipe.language_model).load_multimodal()
        return _write(recipe, model, processor)
    codec = VisualTokenizer.from_pretrained(recipe.visual_tokenizer)
    image_processor = None
    if Path(recipe.visual_tokenizer, "preprocessor_config.json").is_file():
        image_processor = VisualTokenizerImageProcessor.from_pretrained(recipe.visual_tokenizer)
    language_model, text_tokenizer = LMBackboneConfig.family.build(recipe.language_model).load()
    model, processor = merge_vocabulary(
        language_model,
        text_tokenizer,
        codec,
        layout=recipe.layout,
        embedding_init=recipe.embedding_init,
        pad_to_multiple_of=recipe.pad_to_multiple_of,
        seed=recipe.seed,
        image_processor=image_processor,
    )
    return _write(recipe, model, processor)


def _write(recipe: MergeRecipe, model: PreTrainedModel, processor: MultimodalProcessor) -> Path:
    with whole_folder(recipe.output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        save_recipe(recipe, folder)
    return Path(recipe.output)
