"""A text tokenizer, a visual tokenizer and language models small enough for every test."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mmlm.merging.merge import merge_vocabulary
from mmlm.recipes.training import LMRecipe
from mmlm.text_tokenizer import train_text_tokenizer
from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.runs.folder import StepLog

COLORS = ("red", "green", "blue", "yellow", "black")
THINGS = ("apple", "car", "dog", "house", "tree")
PLACES = (
    "on a table",
    "under the roof",
    "near the sea",
    "in the rain",
    "at night",
    "4 of 20",
    "in 1 box",
    "!",
)


@pytest.fixture(scope="session")
def captions() -> list[str]:
    return [f"a {color} {thing} {place}" for color in COLORS for thing in THINGS for place in PLACES]


@pytest.fixture(scope="session")
def text_tokenizer(captions: list[str], tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    return train_text_tokenizer(captions, 380, tmp_path_factory.mktemp("text"))


def build_codec(**fields: object) -> VisualTokenizer:
    torch.manual_seed(0)
    sections = {
        "encoder": {"type": "patch", "patch_size": 8, "width": 16},
        "quantizer": {"type": "fsq", "levels": [8, 8, 8]},
        "decoder": {"type": "patch", "patch_size": 8, "width": 16},
    }
    return VisualTokenizer(VisualTokenizerConfig(image_size=32, **{**sections, **fields})).eval()


@pytest.fixture(scope="session")
def codec() -> VisualTokenizer:
    """512 codes, a grid of 4 × 4 for 32 pixels."""
    return build_codec()


@pytest.fixture(scope="session")
def make_codec() -> Callable[..., VisualTokenizer]:
    return build_codec


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LlamaForCausalLM]:
    def make(rows: int, tied: bool = True, **fields: object) -> LlamaForCausalLM:
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=rows,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            **fields,
        )
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():  # rows with a mean and spreads of their own, as trained rows have
            for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
                table.mul_(torch.linspace(0.5, 2, 48)).add_(0.1 * torch.randn(48))
        return model

    return make


@pytest.fixture(scope="session")
def captioned_pictures(captions: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 pictures of 4 × 4 coloured squares, 32 pixels, with captions in metadata.jsonl."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for number, caption in enumerate(captions[::8][:24]):
        squares = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(squares).resize((32, 32), Image.Resampling.NEAREST).save(folder / f"{number:02d}.png")
        lines.append(json.dumps({"file_name": f"{number:02d}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def merged_folder(
    codec: VisualTokenizer,
    text_tokenizer: PreTrainedTokenizerFast,
    make_model: Callable[..., LlamaForCausalLM],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A merged tiny Llama with a tied head, in Emu3's layout, as `mmlm merge` leaves it on the disk."""
    folder = tmp_path_factory.mktemp("merged")
    model, processor = merge_vocabulary(
        make_model(len(text_tokenizer), max_position_embeddings=128), text_tokenizer, copy.deepcopy(codec)
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def shards_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first run of the session leaves its tokenized pictures for the others."""
    return tmp_path_factory.mktemp("shards")


@pytest.fixture
def recipe_fields(merged_folder: Path, captioned_pictures: Path, shards_dir: Path, tmp_path: Path) -> dict[str, Any]:
    """Dotted fields of a recipe that trains in a second or two."""
    return {
        "model": str(merged_folder),
        "output_dir": str(tmp_path / "run"),
        "data.source": {"type": "image_folder", "folder": str(captioned_pictures), "heldout_fraction": 0.3},
        "data.shards_dir": str(shards_dir),
        "data.image_to_text_fraction": 0.3,
        "training.max_steps": 6,
        "training.batch_size": 4,
        "training.log_every_steps": 1,
        "training.checkpoint_every_steps": 3,
        "optimizer.warmup_steps": 2,
        "optimizer.learning_rate": 0.003,
    }


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., LMRecipe]:
    """Build a recipe of dotted fields and changes, in which `__` stands for the dot."""

    def make(fields: dict[str, Any], **changes: Any) -> LMRecipe:
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        return read_recipe(LMRecipe, None, {**copy.deepcopy(fields), **changed})

    return make


@pytest.fixture(scope="session")
def losses_of() -> Callable[[Path | str], list[tuple[int, float]]]:
    """Read step and loss of every line of a run's log."""

    def read(output_dir: Path | str) -> list[tuple[int, float]]:
        return [(line["step"], line["loss"]) for line in StepLog(Path(output_dir)).read() if "loss" in line]

    return read
