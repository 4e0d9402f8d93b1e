"""Every recipe of a language model's training runs a few steps, and its result loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from mmlm.merging.merge import merge_vocabulary
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.training import LMRecipe
from mmlm.text_tokenizer import train_text_tokenizer
from mmlm.training.build import train
from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.hf_training.arguments import read_deepspeed
from visual_tokenizer.hf_training.checkpoints import list_checkpoints
from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.runs.folder import StepLog

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
TRAINING_RECIPES = [
    path for path in sorted((RECIPES / "lm").glob("*.yaml")) if "training" in yaml.safe_load(path.read_text())
]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged model of a few thousand weights, in place of the recipe's."""
    folder = tmp_path_factory.mktemp("merged")
    torch.manual_seed(0)
    patch = {"type": "patch", "patch_size": 8, "width": 16}
    fields = {"encoder": patch, "quantizer": {"type": "fsq", "levels": [4, 4, 4]}, "decoder": patch}
    codec = VisualTokenizer(VisualTokenizerConfig(image_size=16, **fields))
    text_tokenizer = train_text_tokenizer([f"a {c} cat no {n}" for c in ("red", "blue") for n in range(9)], 290, folder)
    config = LlamaConfig(
        vocab_size=len(text_tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    model, processor = merge_vocabulary(LlamaForCausalLM(config), text_tokenizer, codec)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("path", TRAINING_RECIPES, ids=lambda path: path.stem)
def test_recipe_trains(path: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("VISUAL_TOKENIZER_CACHE", str(tmp_path / "cache"))
    smoke = yaml.safe_load(path.read_text())["smoke"]
    places = {
        "model": str(tiny_model),
        "output_dir": str(tmp_path / "run"),
        "data.shards_dir": str(tmp_path / "shards"),
    }
    recipe = read_recipe(LMRecipe, path, {**smoke, **places})
    final = train(recipe)
    model = AutoModelForCausalLM.from_pretrained(final)
    MultimodalProcessor.from_pretrained(final).check_model(model)
    lines = StepLog(tmp_path / "run").read()
    steps, every = recipe.training.max_steps, recipe.training
    assert [line["step"] for line in lines if "loss" in line][-1] == steps
    evaluations = steps // every.evaluate_every_steps if every.evaluate_every_steps else 0
    assert sum("eval_loss" in line for line in lines) == evaluations
    due = {*range(0, steps, every.sample_every_steps or steps), steps} - {0}
    drawn = (tmp_path / "run" / "samples").glob("*.png")
    assert {int(grid.stem.removeprefix("step-")) for grid in drawn} == due
    assert list_checkpoints(tmp_path / "run")


@pytest.mark.parametrize("path", TRAINING_RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_as_it_stands(path: Path) -> None:
    recipe = read_recipe(LMRecipe, path, {})
    assert not Path(recipe.model).is_absolute()
    assert not Path(recipe.output_dir).is_absolute()


@pytest.mark.parametrize("path", sorted((RECIPES / "deepspeed").glob("*.json")), ids=lambda path: path.stem)
def test_deepspeed_configurations_are_of_the_stage_they_are_named_after(path: Path) -> None:
    config = read_deepspeed(str(path))
    assert f"zero{config['zero_optimization']['stage']}" == path.stem.partition("_")[0]
    assert config["train_micro_batch_size_per_gpu"] == "auto"
    offloads = any(key.startswith("offload") for key in config["zero_optimization"])
    assert offloads is path.stem.endswith("offload")
    if config["zero_optimization"]["stage"] == 3:
        assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is True
