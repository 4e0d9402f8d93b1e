"""Weights of losses that follow a schedule: their values, what training sees of them, and that a run goes on."""

from __future__ import annotations

import json

import pytest
import torch

from visual_tokenizer.losses.base import LossConfig, WeightSchedule
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.training.trainer import TokenizerTrainer

SCHEDULE = {"final_weight": 2.0, "start_step": 2, "ramp_steps": 4}


def weight_at(step: int, first: float = 1.0, **fields) -> float:
    return float(WeightSchedule(**{**SCHEDULE, **fields}).weight(first, torch.tensor(step)))


def test_values_at_steps():
    assert [weight_at(step) for step in range(9)] == [1, 1, 1, 1.25, 1.5, 1.75, 2, 2, 2]
    assert [weight_at(step, first=3.0, final_weight=0.0) for step in (2, 4, 6, 100)] == [3, 1.5, 0, 0]
    assert [weight_at(step, ramp_steps=0) for step in (1, 2, 3, 4)] == [1, 1, 2, 2]
    assert [weight_at(step, start_step=0, ramp_steps=2) for step in (0, 1, 2)] == [1, 1.5, 2]


def losses(**schedule):
    return [{"type": "l2"}, {"type": "l1", "weight": 1.0, "schedule": {**SCHEDULE, **schedule}}]


def logged(trainer: TokenizerTrainer, name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (trainer.folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def trained(recipe) -> TokenizerTrainer:
    trainer = TokenizerTrainer(recipe)
    trainer.train()
    return trainer


def test_training_weighs_each_step_as_the_schedule_says_and_goes_on_exactly(tiny_recipe, tmp_path):
    settings = {"losses": losses(), "optimizer__schedule": "constant"}
    straight = trained(tiny_recipe(output_dir=str(tmp_path / "a"), training__max_steps=8, **settings))
    weighted = logged(straight, "loss/l1")
    # The same step without a schedule has the first weight; its pictures and weights are the same at step 1.
    plain = trained(
        tiny_recipe(output_dir=str(tmp_path / "b"), training__max_steps=1, losses=[{"type": "l2"}, {"type": "l1"}])
    )
    assert weighted[1] == pytest.approx(logged(plain, "loss/l1")[1])
    trained(tiny_recipe(output_dir=str(tmp_path / "c"), training__max_steps=4, **settings))
    resumed = trained(tiny_recipe(output_dir=str(tmp_path / "c"), training__max_steps=8, **settings))
    assert logged(resumed, "loss/l1") == weighted
    for name, value in straight.tokenizer.state_dict().items():
        assert torch.equal(value, resumed.tokenizer.state_dict()[name]), name


def test_accumulated_passes_of_a_step_have_one_weight(tiny_recipe):
    trainer = TokenizerTrainer(tiny_recipe(losses=losses(), training__gradient_accumulation_steps=2))
    seen = []
    weigh = trainer.unwrapped.weight
    trainer.unwrapped.weight = lambda name: seen.append((name, float(weigh(name)))) or weigh(name)
    trainer.train()
    assert [value for name, value in seen if name == "l1"] == [1, 1, 1, 1, 1, 1, 1.25, 1.25, 1.5, 1.5, 1.75, 1.75]
    assert "steps" not in trainer.unwrapped.state_dict()


def test_wrong_schedules_are_refused(tiny_recipe):
    for fields in ({"start_step": -1}, {"ramp_steps": -1}, {"final_weight": -0.1}):
        (name,) = fields
        with pytest.raises(ConfigError, match=rf"schedule\.{name} must be 0 or more"):
            tiny_recipe(losses=losses(**fields))
    with pytest.raises(ConfigError, match="final_weight"):
        LossConfig.family.config({"type": "l1", "schedule": {}})
