"""Every recipe of masked image modelling runs a few steps, made tiny by its section `smoke`, and its result loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import BeitForMaskedImageModeling

import visual_tokenizer
from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.pretraining.build import pretrain
from visual_tokenizer.pretraining.recipe import PretrainingRecipe
from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.runs.folder import StepLog

ROOT = Path(visual_tokenizer.__file__).parents[1] / "recipes" / "pretraining"
RECIPES = sorted(ROOT.rglob("*.yaml"))


@pytest.fixture(autouse=True)
def cached_pictures(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rasterise into a folder that all tests of a session share and nothing outlives."""
    torch.set_num_threads(1)
    monkeypatch.setenv("VISUAL_TOKENIZER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def tokenizer_for(recipe: PretrainingRecipe, folder: Path) -> str:
    """Save a tokenizer of a few hundred weights with a token a patch."""
    size = recipe.tokenizer_image_size or recipe.image_size
    part = {"type": "patch", "patch_size": size // recipe.patch_grid[0], "width": 16}
    fields = {"encoder": part, "quantizer": {"type": "fsq", "levels": [4, 4]}, "decoder": part}
    VisualTokenizer(VisualTokenizerConfig(image_size=size, **fields)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("path", RECIPES, ids=[str(path.relative_to(ROOT)) for path in RECIPES])
def test_a_recipe_trains_and_its_result_loads(path, tmp_path):
    smoke = yaml.safe_load(path.read_text(encoding="utf-8"))["smoke"]
    overrides = {**smoke, "output_dir": str(tmp_path / "run")}
    overrides["tokenizer"] = tokenizer_for(read_recipe(PretrainingRecipe, path, overrides), tmp_path / "tokenizer")
    recipe = read_recipe(PretrainingRecipe, path, overrides)
    model = BeitForMaskedImageModeling.from_pretrained(pretrain(recipe))
    pixels = torch.rand(1, 3, recipe.image_size, recipe.image_size) * 2 - 1
    patches = recipe.patch_grid[0] ** 2
    logits = model(pixels, bool_masked_pos=torch.ones(1, patches, dtype=torch.bool)).logits
    assert logits.shape == (1, patches, 16)
    assert torch.isfinite(logits).all()
    assert [line["step"] for line in StepLog(tmp_path / "run").read() if "loss" in line][-1] == 2


@pytest.mark.parametrize("path", RECIPES, ids=[str(path.relative_to(ROOT)) for path in RECIPES])
def test_a_recipe_is_valid_as_it_stands(path):
    recipe = read_recipe(PretrainingRecipe, path, {})
    assert not Path(recipe.output_dir).is_absolute()
    if path.parent.name == "paper":
        assert recipe.patch_grid == (14, 14)


def test_there_are_recipes():
    assert len(RECIPES) >= 3
