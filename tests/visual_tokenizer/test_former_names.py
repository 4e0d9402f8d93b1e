"""Recipes and configs with the names that fields had before."""

from __future__ import annotations

import logging

import pytest
import yaml

from mmlm.merge_record import tokenizer_hash
from mmlm.recipes.training import LMRecipe
from visual_tokenizer import VisualTokenizerConfig
from visual_tokenizer.doctor import DoctorRecipe
from visual_tokenizer.features import FeaturesRecipe
from visual_tokenizer.fields import former
from visual_tokenizer.losses.base import LossConfig
from visual_tokenizer.pretraining.recipe import PretrainingRecipe
from visual_tokenizer.recipe import ConfigError, parse_arguments, read_recipe, recipe_to_dict
from visual_tokenizer.training.recipe import TokenizerRecipe


@pytest.fixture(autouse=True)
def told_anew():
    former._tell.cache_clear()


def write(path, **values):
    path.write_text(yaml.safe_dump(values))
    return path


def test_a_recipe_of_before_is_read_with_a_line_for_each_name(tmp_path, caplog):
    file = write(
        tmp_path / "recipe.yaml",
        output_dir="run",
        data={"batch_size": 8},
        training={"resume": False},
        teacher={"name": "efficientnet-lite0"},
        losses=[{"type": "embedding_contrastive", "network_weights": None}],
    )
    with caplog.at_level(logging.WARNING):
        recipe = read_recipe(TokenizerRecipe, file, {})
    assert (recipe.training.batch_size, recipe.training.resume) == (8, "never")
    assert recipe.teacher.network == "efficientnet-lite0"
    assert sorted(caplog.messages) == [
        "data.batch_size is now called training.batch_size",
        "losses[0].network_weights is now called losses[0].weights",
        "teacher.name is now called teacher.network",
        "training.resume: False is now written never",
    ]
    assert "batch_size" not in recipe_to_dict(recipe)["data"]


@pytest.mark.parametrize("inside", ["data.batch_size", "training.batch_size"])
@pytest.mark.parametrize("given", ["data.batch_size", "training.batch_size", "training.batch-size", "data.batch-size"])
def test_what_the_command_line_says_counts_by_either_name(inside, given, tmp_path):
    section, name = inside.split(".")
    file = write(tmp_path / "recipe.yaml", tokenizer="t", output_dir="run", **{section: {name: 8}})
    recipe = parse_arguments(
        PretrainingRecipe, ["--config", str(file), f"--{given}", "16"], program="pretrain", about=""
    )
    assert recipe.training.batch_size == 16


def test_a_field_by_both_names_is_refused(tmp_path):
    file = write(tmp_path / "recipe.yaml", output_dir="run", data={"batch_size": 8}, training={"batch_size": 8})
    with pytest.raises(ConfigError, match=r"data\.batch_size is the former name of training\.batch_size: give"):
        read_recipe(TokenizerRecipe, file, {})


@pytest.mark.parametrize(("word", "expected"), [("true", "auto"), ("false", "never"), ("auto", "auto"), ("a/b", "a/b")])
def test_resume_is_auto_never_or_a_checkpoint_everywhere(word, expected):
    for cls, needed in ((TokenizerRecipe, []), (PretrainingRecipe, ["--tokenizer", "t"]), (LMRecipe, LM)):
        words = ["--output-dir", "run", *needed, "--training.resume", word]
        assert parse_arguments(cls, words, program="train", about="").training.resume == expected


LM = ["--model", "m", "--data.source.type", "openmoji", "--data.shards_dir", "s", "--training.max_steps", "1"]


def test_small_recipes_take_the_names_of_before(tmp_path):
    assert read_recipe(DoctorRecipe, None, {"model": "m", "out": str(tmp_path)}).output == str(tmp_path)
    features = read_recipe(FeaturesRecipe, None, {"output": "f", "backbone": "vgg16"})
    assert features.network == "vgg16"
    loss = LossConfig.family.config({"type": "perceptual", "network_weights": "file.pth"})
    assert loss.weights == "file.pth"
    recipe = read_recipe(LMRecipe, None, {
        "model": "m", "output_dir": "o", "training.max_steps": 1, "data.shards_dir": "s",
        "data.source": {"type": "openmoji"}, "optimizer.schedule_options.min_lr_rate": 0.3,
    })  # fmt: skip
    assert recipe.optimizer.min_learning_rate_ratio == 0.3
    assert recipe.optimizer.schedule_options == {}


def test_a_tokenizer_with_a_frozen_network_keeps_its_hash():
    def tokenizer(**fields):
        encoder = {"type": "backbone", "network": "efficientnet_lite0", "level": 2, **fields}
        return VisualTokenizerConfig(
            image_size=32, encoder=encoder, quantizer={"type": "fsq", "levels": [4]}, decoder={"type": "pixels"}
        )

    config = tokenizer(network_weights=None)
    assert config.encoder["weights"] is None
    assert "network_weights" not in config.encoder
    assert config.to_dict() == tokenizer(weights=None).to_dict()
    stub = type("Stub", (), {"config": config, "state_dict": dict})
    assert tokenizer_hash(stub()) == HASH_BEFORE


HASH_BEFORE = "08a5ba051bc0522a8cc1ce0d2ea56cf033b78b7aede5ef5bd7e56edc9a07a3e7"


def test_a_section_that_a_recipe_names_twice_is_overridden_at_both_places(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("output_dir: run\nencoder: &cnn {type: cnn, channels: 32}\ndecoder: *cnn\n")
    recipe = read_recipe(TokenizerRecipe, path, {"encoder.channels": 64})
    assert (recipe.encoder.channels, recipe.decoder.channels) == (64, 64)
