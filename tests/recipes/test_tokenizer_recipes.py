"""Every recipe of a tokenizer, made tiny by its own section `smoke`, trains two steps and can be loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModel

import visual_tokenizer
from visual_tokenizer.outputs import ABSENT
from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.registry import plugin_folders
from visual_tokenizer.training.recipe import TokenizerRecipe
from visual_tokenizer.training.trainer import TokenizerTrainer

ROOT = Path(visual_tokenizer.__file__).parents[1] / "recipes" / "tokenizer"
FOLDERS = [ROOT, *(folder / "recipes" / "tokenizer" for folder in plugin_folders())]
RECIPES = [(folder, path) for folder in FOLDERS for path in sorted(folder.rglob("*.yaml"))]


@pytest.fixture(autouse=True)
def cached_pictures(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rasterise into a folder that all tests of a session share and nothing outlives."""
    torch.set_num_threads(1)
    monkeypatch.setenv("VISUAL_TOKENIZER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.parametrize(
    "path", [path for _, path in RECIPES], ids=[str(path.relative_to(folder)) for folder, path in RECIPES]
)
def test_a_recipe_trains_and_what_it_saves_gives_the_same_indices(path, tmp_path):
    smoke = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("smoke") or {}
    forced = {
        "output_dir": str(tmp_path / "run"),
        "training.max_steps": 2,
        "training.compile": False,
        "training.mixed_precision": "no",
        "training.report_to": [],
        "data.num_workers": 0,
        "data.cache_megabytes": 0,
    }
    recipe = read_recipe(TokenizerRecipe, path, {**smoke, **forced})
    trainer = TokenizerTrainer(recipe)
    final = trainer.train()
    loaded = AutoModel.from_pretrained(final).eval()
    frames = [recipe.num_frames] if recipe.num_frames else []
    pixels = torch.rand(2, 3, *frames, recipe.image_size, recipe.image_size) * 2 - 1
    indices = loaded.encode(pixels)
    assert torch.equal(indices, trainer.exported.eval().encode(pixels))
    assert indices.shape[1 : 1 + len(loaded.token_grid())] == loaded.token_grid()
    assert (ABSENT if loaded.has_variable_length else 0) <= int(indices.min())
    assert int(indices.max()) < loaded.codebook_size
    assert torch.isfinite(loaded.decode(indices)).all()


def test_there_are_recipes():
    assert any(folder == ROOT for folder, _ in RECIPES)
