"""The recipe of a language model's training, and the entry point that reads it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_scheduler

from mmlm.recipes.training import LMRecipe
from mmlm.train import main
from mmlm.training.build import train
from visual_tokenizer.hf_training.arguments import total_steps
from visual_tokenizer.hf_training.schedules import schedule_arguments
from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.registry import ConfigError


def test_wrong_values_are_named() -> None:
    data = {"source": {"type": "image_folder", "folder": "x"}, "shards_dir": "s"}
    base = {"model": "m", "output_dir": "o", "data": data, "training": {"max_steps": 1}}
    wrong = [
        ({"data.caption_dropout": 1.5}, r"data\.caption_dropout must be in \[0, 1\], got 1\.5"),
        ({"training.epochs": 2}, "either max_steps or epochs"),
        ({"training.mixed_precision": "bfloat"}, r"training\.mixed_precision must be one of no, bf16, fp16"),
        ({"optimizer.schedule": "cosin"}, r"optimizer\.schedule must be one of"),
        ({"training.parameter_dtype": "bfloat16"}, "float32 where all weights are trained"),
        ({"lora.rank": -1}, r"lora\.rank must be 0 or more"),
        ({"loss.image": -1.0}, r"loss\.image must be 0 or more, got -1\.0"),
        ({"loss": {"text": 0, "image": 0, "structure": 0}}, "above 0 for one kind of token at least"),
        ({"data.packing_buffer": 0}, r"data\.packing_buffer must be 1 or more"),
        ({"training.peak_tflops": 0.0}, r"training\.peak_tflops must be above 0"),
        ({"training.max_step": 3}, "unknown key 'max_step'.*Did you mean 'max_steps'"),
    ]
    for changes, message in wrong:
        with pytest.raises(ConfigError, match=message):
            read_recipe(LMRecipe, None, {**json.loads(json.dumps(base)), **changes})


def test_batches_divide_and_epochs_count(recipe_fields: dict[str, Any], make_recipe: Callable[..., LMRecipe]) -> None:
    recipe = make_recipe(recipe_fields, training__batch_size=8, training__gradient_accumulation_steps=2)
    assert recipe.training.per_device_batch_size(2) == 2
    with pytest.raises(ConfigError, match="multiple of processes"):
        recipe.training.per_device_batch_size(3)
    epochs = make_recipe(recipe_fields, training__max_steps=None, training__epochs=2.5)
    assert total_steps(epochs.training, 24) == 15


def test_mistakes_end_with_one_line_and_code_2(recipe_fields: dict[str, Any], tmp_path: Path) -> None:
    arguments = [f"--{key}={json.dumps(value)}" for key, value in recipe_fields.items()]
    for extra in (
        "--training.max_stepz=3",
        f"--model={tmp_path}",
        "--training.deepspeed=none.json",
        "--training.batch_size=0",
    ):
        assert main([*arguments, extra]) == 2


def test_help_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "accelerate launch --use_deepspeed" in text
    for name in ("--data.caption_dropout", "--lora.rank", "--training.deepspeed", "--data.source.type"):
        assert name in text


def test_every_field_of_the_recipe_is_read(
    recipe_fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_recipe: Callable[..., LMRecipe]
) -> None:
    recipe = make_recipe(
        recipe_fields,
        lora={"rank": 2},
        data__packing=True,
        training__sample_every_steps=1,
        training__evaluate_every_steps=1,
    )
    recipe.data.shards_dir = str(tmp_path / "shards")
    recipe.data.packing = True
    recipe.training.max_steps = 1
    sections = [
        recipe,
        recipe.data,
        recipe.loss,
        recipe.optimizer,
        recipe.training,
        recipe.sampling,
        recipe.lora,
        recipe.loss,
    ]
    read: set[tuple[type, str]] = set()
    for section in sections:
        cls = type(section)

        def recording(self: Any, name: str, cls: type = cls) -> Any:
            read.add((cls, name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(cls, "__getattribute__", recording, raising=False)
    # writing a recipe out reads every field, which proves nothing
    for module in ("mmlm.training.build", "mmlm.training.export"):
        monkeypatch.setattr(f"{module}.save_recipe", lambda recipe, folder: None)
    train(recipe)
    unread = {
        f"{type(section).__name__}.{field.name}"
        for section in sections
        for field in dataclasses.fields(section)
        if (type(section), field.name) not in read
    }
    assert unread == {"LMRecipe.smoke"}, "smoke is for tests"


def test_every_schedule_ends_where_the_ratio_says() -> None:
    def rate(step: int, **optimizer: Any) -> float:
        data = {"source": {"type": "image_folder", "folder": "x"}, "shards_dir": "s"}
        base = {"model": "m", "output_dir": "o", "data": data, "training": {"max_steps": 10}}
        section = read_recipe(LMRecipe, None, {**base, "optimizer": {"warmup_steps": 0, **optimizer}}).optimizer
        found = schedule_arguments(section.schedule, section.min_learning_rate_ratio, section.schedule_options)
        optimizer_of_one = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        name, options = found["lr_scheduler_type"], found["lr_scheduler_kwargs"]
        schedule = get_scheduler(name, optimizer_of_one, 0, 10, scheduler_specific_kwargs=options)
        return schedule.lr_lambdas[0](step)

    assert [rate(step) for step in (0, 5, 10)] == pytest.approx([1, 0.5, 0])
    for fields in (
        {"schedule": "cosine", "min_learning_rate_ratio": 0.2},
        {"schedule": "cosine_with_min_lr", "schedule_options": {"min_lr_rate": 0.2}},
        {"schedule": "warmup_stable_decay", "schedule_options": {"num_decay_steps": 5, "min_lr_ratio": 0.2}},
    ):
        assert rate(10, **fields) == pytest.approx(0.2)
    with pytest.raises(ConfigError, match="min_learning_rate_ratio must be 0 unless schedule is one of cosine"):
        rate(0, schedule="linear", min_learning_rate_ratio=0.1)
