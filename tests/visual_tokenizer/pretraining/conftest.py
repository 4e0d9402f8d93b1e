"""A tokenizer of a few hundred weights and a recipe of a few steps, on 16-pixel pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.pretraining.recipe import PretrainingRecipe
from visual_tokenizer.recipe import read_recipe

PATCHES = {"type": "patch", "patch_size": 4, "width": 16}


def tiny_tokenizer(levels: list[int] | None = None, quantizer: dict[str, Any] | None = None) -> VisualTokenizer:
    """Return a random tokenizer with 4 × 4 tokens of 16-pixel pictures."""
    torch.manual_seed(0)
    fsq = {"type": "fsq", "levels": levels or [4, 4]}
    fields = {"encoder": dict(PATCHES), "quantizer": quantizer or fsq, "decoder": dict(PATCHES)}
    tokenizer = VisualTokenizer(VisualTokenizerConfig(image_size=16, **fields)).eval()
    with torch.no_grad():
        tokenizer.to_codes.weight.mul_(20)  # else a random encoder gives nearly every patch the same token
    return tokenizer


@pytest.fixture
def build_tokenizer() -> Callable[..., VisualTokenizer]:
    """Build a random tokenizer; see `tiny_tokenizer`."""
    return tiny_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def beit_recipe(pictures_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> Callable[..., PretrainingRecipe]:
    """Build a tiny recipe with overrides, `section__field=value`."""
    torch.set_num_threads(1)

    def build(**overrides: Any) -> PretrainingRecipe:
        values = {
            "tokenizer": str(tokenizer_folder),
            "output_dir": str(tmp_path / "run"),
            "image_size": 16,
            "model.patch_size": 4,
            "model.hidden_size": 32,
            "model.layers": 2,
            "model.heads": 2,
            "model.intermediate_size": 32,
            "data.source": {"type": "image_folder", "folder": str(pictures_folder), "heldout_fraction": 0.25},
            "data.transform": {"horizontal_flip": True},
            "training.batch_size": 8,
            "training.max_steps": 4,
            "training.log_every_steps": 1,
            "training.checkpoint_every_steps": 2,
            "training.sample_pictures": 2,
            "probe.label_column": None,
            **{name.replace("__", "."): value for name, value in overrides.items()},
        }
        return read_recipe(PretrainingRecipe, None, values)

    return build
