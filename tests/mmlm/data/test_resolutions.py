"""A curriculum of picture sizes: each step reads pictures of its stage's size, in one order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmlm.data.mixture import StagedSequences
from mmlm.data.sets import at_size
from mmlm.data.shards import read_header
from mmlm.recipes.training import LMRecipe
from mmlm.training.build import build_trainer, load_processor, run_arguments, train
from visual_tokenizer.registry import ConfigError

STAGES = [{"image_size": 16, "until_step": 2}, {"image_size": 24, "until_step": 3}, {"image_size": 32}]


@pytest.fixture
def fields(recipe_fields: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return {**recipe_fields, "data.resolutions": STAGES, "data.shards_dir": str(tmp_path / "shards")}


def picture_tokens(item: dict[str, np.ndarray]) -> int:
    return int((item["token_kinds"] == 1).sum())


def test_every_step_has_the_pictures_of_its_size_in_the_order_of_one_size(
    fields: dict[str, Any], recipe_fields: dict[str, Any], tmp_path: Path, make_recipe: Callable[..., LMRecipe]
) -> None:
    recipe = make_recipe(fields)
    processor = load_processor(recipe.model)
    rows: Any = build_trainer(recipe, processor, run_arguments(recipe)).train_dataset
    assert len(rows) == 6 * 4
    sequences = rows.dataset
    assert isinstance(sequences, StagedSequences)
    grids = [4] * 8 + [9] * 4 + [16] * 12
    assert [picture_tokens(sequences[position]) for position in range(24)] == grids
    assert [picture_tokens(item) for item in sequences.__getitems__([23, 0, 9, 7, 12])] == [16, 4, 9, 4, 16]
    lengths = sequences.lengths(range(24))
    assert lengths.tolist() == [len(sequences[position]["input_ids"]) for position in range(24)]

    plain: Any = build_trainer(
        make_recipe(recipe_fields), processor, run_arguments(make_recipe(recipe_fields))
    ).train_dataset.dataset
    for position in range(24):
        one, other = (item["input_ids"][item["token_kinds"] == 0] for item in (sequences[position], plain[position]))
        assert np.array_equal(one, other), "the same caption, so the same picture"
    assert np.array_equal(sequences[20]["input_ids"], plain[20]["input_ids"])
    for size in (16, 24, 32):
        assert read_header(tmp_path / "shards" / f"{size}px" / "train").image_size == {"height": size, "width": size}
    assert processor.image_processor.size["height"] == 32, "the processor itself is as it was"


def test_a_run_resumes_bit_for_bit_across_the_sizes(
    fields: dict[str, Any], tmp_path: Path, make_recipe: Callable[..., LMRecipe], losses_of: Callable[..., Any]
) -> None:
    recipe = make_recipe(
        fields, training__checkpoint_every_steps=1, training__keep_checkpoints=9, training__evaluate_every_steps=6
    )
    train(recipe)
    whole = losses_of(tmp_path / "run")
    for step in range(2, 7):
        (tmp_path / "run" / f"checkpoint-{step}" / "manifest.json").unlink()
    train(recipe)
    assert losses_of(tmp_path / "run") == whole
    assert (tmp_path / "shards" / "32px" / "heldout").is_dir(), "evaluation is at the last size"


def test_pictures_are_read_at_the_size(fields: dict[str, Any], make_recipe: Callable[..., LMRecipe]) -> None:
    processor = load_processor(make_recipe(fields).model)
    resized = at_size(processor, 16)
    picture = np.zeros((50, 40, 3), np.uint8)
    assert resized.image_processor(picture, return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 16)
    assert processor.image_processor(picture, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
    assert resized.encode_images([Image.fromarray(picture)]).shape == (1, 2, 2)


def test_mistakes_are_named(fields: dict[str, Any], make_recipe: Callable[..., LMRecipe]) -> None:
    for stages, message in (
        ([{"image_size": 16, "until_step": 2}], "with null for the last one alone"),
        ([{"image_size": 16}, {"image_size": 32}], "rise from stage to stage"),
        ([{"image_size": 0}], r"data\.resolutions\[0\]\.image_size must be 1 or more, got 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_recipe({**fields, "data.resolutions": stages})
    with pytest.raises(ConfigError, match=r"data\.packing must be false where there is resolutions"):
        make_recipe({**fields, "data.packing": True})
    recipe = make_recipe({**fields, "data.resolutions": [{"image_size": 20}]})
    with pytest.raises(ConfigError, match=r"a size that the visual tokenizer takes, got 20"):
        train(recipe)
