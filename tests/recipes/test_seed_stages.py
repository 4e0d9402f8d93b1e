"""SEED's two stages by their recipes: queries that know the caption, then codes for them, the encoder as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import visual_tokenizer
from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.training.recipe import TokenizerRecipe
from visual_tokenizer.training.trainer import TokenizerTrainer

ROOT = Path(visual_tokenizer.__file__).parents[1] / "recipes" / "tokenizer"


@pytest.fixture(autouse=True)
def cached_pictures(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("VISUAL_TOKENIZER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def train(name: str, folder: Path, **overrides):
    path = ROOT / f"{name}.yaml"
    smoke = yaml.safe_load(path.read_text(encoding="utf-8"))["smoke"]
    settings = {"output_dir": str(folder), "training.max_steps": 2, "data.cache_megabytes": 0, **overrides}
    trainer = TokenizerTrainer(read_recipe(TokenizerRecipe, path, {**smoke, **settings}))
    return trainer.train(), trainer


def test_seed_is_trained_in_two_stages(tmp_path):
    first, stage1 = train("openmoji_seed_alignment", tmp_path / "first", **{"training.ema_decay": 0.0})
    assert stage1.tokenizer.to_codes.weight.grad is None or not stage1.tokenizer.to_codes.weight.grad.any()
    second = {"initialize_from": str(first), "training.ema_decay": 0.0}
    _, stage2 = train("openmoji_seed", tmp_path / "second", **second)
    before, after = stage1.tokenizer.state_dict(), stage2.tokenizer.state_dict()
    for name, weight in after.items():
        if name.startswith("encoder"):
            assert torch.equal(weight, before[name]), name
    assert not torch.equal(after["to_codes.weight"], before["to_codes.weight"])
    assert not torch.equal(after["decoder.projection.weight"], before["decoder.projection.weight"])
