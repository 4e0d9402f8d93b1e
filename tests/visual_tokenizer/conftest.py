"""Tiny runs: 16-pixel pictures from a generated folder, a model of 40,000 parameters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.training.recipe import TokenizerRecipe

CNN = {
    "type": "cnn",
    "channels": 8,
    "channel_multipliers": [1, 2],
    "blocks_per_level": 1,
    "groups": 4,
    "latent_channels": 8,
    "middle_attention": False,
    "attention_resolutions": [],
}


@pytest.fixture(scope="session")
def pictures_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 different pictures of coloured blocks, 10 of them held out by the hash of their name."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(32):
        blocks = random.integers(0, 255, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((20, 20), Image.Resampling.NEAREST).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def tiny_values(pictures_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """A recipe of 6 steps as plain values."""
    torch.set_num_threads(1)
    return {
        "output_dir": str(tmp_path / "run"),
        "image_size": 16,
        "encoder": dict(CNN),
        "decoder": dict(CNN),
        "quantizer": {
            "type": "vq",
            "codebook_size": 16,
            "code_dim": 4,
            "initializer": {"type": "kmeans", "samples": 256},
            "reseeder": {"type": "hard_example", "every_steps": 2},
        },
        "losses": [{"type": "l2"}, {"type": "l1", "weight": 0.5}],
        "data": {
            "source": {"type": "image_folder", "folder": str(pictures_folder), "heldout_fraction": 0.25},
        },
        "training": {
            "batch_size": 8,
            "max_steps": 6,
            "log_every_steps": 1,
            "sample_every_steps": 0,
            "evaluate_every_steps": 0,
            "checkpoint_every_steps": 2,
            "sample_pictures": 4,
            "ema_decay": 0.9,
        },
    }


@pytest.fixture
def tiny_recipe(tiny_values: dict[str, Any]) -> Any:
    """Build the tiny recipe with dotted overrides."""

    def build(**overrides: Any) -> TokenizerRecipe:
        dotted = {key.replace("__", "."): value for key, value in overrides.items()}
        return read_recipe(TokenizerRecipe, None, copy.deepcopy({**tiny_values, **dotted}))

    return build
