"""Stages in which only a part of the weights moves: what stands still does so bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mmlm.merging.merge import merge_vocabulary
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.training import LMRecipe
from mmlm.training.build import train
from mmlm.training.lora import new_rows
from visual_tokenizer.registry import ConfigError

ROWS_FIRST = {"training.freeze": [{"until_step": 4}], "training.checkpoint_every_steps": 2}


def differences(one: Path, other: Path, rows: list[int]) -> dict[str, bool]:
    """Return, for the old rows, the new rows and each other weight, whether it differs between two folders."""
    models = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (one, other)]
    found = {}
    for name, before in models[0].items():
        moved = (before != models[1][name]).flatten(1).any(1) if before.dim() > 1 else before != models[1][name]
        if "embed_tokens" in name or "lm_head" in name:
            is_new = torch.zeros(len(moved), dtype=torch.bool)
            is_new[rows] = True
            found |= {f"{name}, old": bool(moved[~is_new].any()), f"{name}, new": bool(moved[is_new].any())}
        else:
            found[name] = bool(moved.any())
    return found


@pytest.mark.parametrize("tied", [True, False])
def test_old_rows_stand_still_bit_for_bit_until_the_switch(
    tied: bool,
    recipe_fields: dict[str, Any],
    make_model: Any,
    text_tokenizer: Any,
    codec: Any,
    tmp_path: Path,
    make_recipe: Callable[..., LMRecipe],
) -> None:
    base = Path(recipe_fields["model"])
    if not tied:
        base = tmp_path / "base"
        model, processor = merge_vocabulary(make_model(len(text_tokenizer), tied=False), text_tokenizer, codec)
        model.save_pretrained(base)
        processor.save_pretrained(base)
    fields = {**recipe_fields, **ROWS_FIRST, "training.keep_checkpoints": 9, "optimizer.weight_decay": 0.5}
    final = train(make_recipe(fields, model=str(base)))
    rows = new_rows(MultimodalProcessor.from_pretrained(base).layout)
    until = differences(base, tmp_path / "run" / "checkpoint-4", rows)
    moved = {name for name, differs in until.items() if differs}
    assert moved == {name for name in until if name.endswith(", new")}, "new rows alone"
    after = differences(tmp_path / "run" / "checkpoint-4", final, rows)
    assert all(after.values()), "then all"


def test_a_run_resumes_bit_for_bit_across_the_switch(
    recipe_fields: dict[str, Any], tmp_path: Path, make_recipe: Callable[..., LMRecipe], losses_of: Callable[..., Any]
) -> None:
    recipe = make_recipe({**recipe_fields, **ROWS_FIRST, "training.keep_checkpoints": 9})
    train(recipe)
    whole = losses_of(tmp_path / "run")
    for kept in (2, 4):
        for step in (4, 6):
            if step > kept:
                (tmp_path / "run" / f"checkpoint-{step}" / "manifest.json").unlink(missing_ok=True)
        train(recipe)
        assert losses_of(tmp_path / "run") == whole


def test_weights_can_be_named_and_adapters_can_wait(
    recipe_fields: dict[str, Any], tmp_path: Path, make_recipe: Callable[..., LMRecipe]
) -> None:
    only_norms = {"training.freeze": [{"until_step": 6, "train": ["model.norm.*"]}]}
    final = train(make_recipe({**recipe_fields, **only_norms}))
    found = differences(Path(recipe_fields["model"]), final, [0])
    assert {name for name, moved in found.items() if moved} == {"model.norm.weight"}

    rows_only = {"training.freeze": [{"until_step": 6}]}
    final = train(make_recipe({**recipe_fields, **rows_only, "lora": {"rank": 2}}, output_dir=str(tmp_path / "lora")))
    rows = new_rows(MultimodalProcessor.from_pretrained(final).layout)
    found = differences(Path(recipe_fields["model"]), final, rows)
    assert {name for name, moved in found.items() if moved} == {name for name in found if name.endswith(", new")}


def test_mistakes_are_named(recipe_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe]) -> None:
    with pytest.raises(ConfigError, match="each ends later than the one before"):
        make_recipe({**recipe_fields, "training.freeze": [{"until_step": 4}, {"until_step": 4}]})
    with pytest.raises(ConfigError, match=r"training\.freeze\[0\]\.until_step must be 1 or more, got 0"):
        make_recipe({**recipe_fields, "training.freeze": [{"until_step": 0}]})
    with pytest.raises(ConfigError, match=r"got 'model\.norms', which is none of"):
        train(make_recipe({**recipe_fields, "training.freeze": [{"until_step": 4, "train": ["model.norms"]}]}))
