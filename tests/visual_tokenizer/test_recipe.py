from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from visual_tokenizer.quantizers.base import QuantizerConfig
from visual_tokenizer.recipe import help_text, parse_arguments, read_recipe, save_recipe
from visual_tokenizer.registry import ConfigError


@dataclass
class Optimizer:
    learning_rate: float = 1e-3
    """Step size; above 0."""


@dataclass
class Toy:
    quantizer: QuantizerConfig
    """The quantizer."""

    optimizer: Optimizer = field(default_factory=Optimizer)
    """The optimiser."""

    tags: list[str] = field(default_factory=list)
    """Free words."""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "toy.yaml"
    file.write_text("quantizer: {type: vq, codebook_size: 16, code_dim: 4}\noptimizer: {learning_rate: 2e-4}\n")
    return file


def read(path, *words):
    return parse_arguments(Toy, ["--config", str(path), *words], program="toy", about="Toy.")


def test_file_and_overrides(path):
    recipe = read(path, "--quantizer.code_dim", "8", "--optimizer.learning_rate=3e-4", "--tags", "[a, b]")
    assert (recipe.quantizer.codebook_size, recipe.quantizer.code_dim) == (16, 8)
    assert recipe.optimizer.learning_rate == 3e-4
    assert recipe.tags == ["a", "b"]


def test_another_type_drops_the_fields_of_the_first(path):
    recipe = read(path, "--quantizer.type", "fsq", "--quantizer.levels", "[3,3]")
    assert recipe.quantizer.levels == [3, 3]


def test_unknown_key_names_key_file_and_nearest(path):
    with pytest.raises(ConfigError, match=r"toy\.yaml: optimizer: unknown key 'learning_rat'.*'learning_rate'"):
        read(path, "--optimizer.learning_rat", "1")
    path.write_text("quantiser: {type: vq}\n")
    with pytest.raises(ConfigError, match=r"toy\.yaml: unknown key 'quantiser'.*Did you mean 'quantizer'"):
        read(path)


def test_missing_file_and_dangling_word():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml does not exist"):
        read_recipe(Toy, "nowhere.yaml", {})
    with pytest.raises(ConfigError, match="--tags needs a value"):
        parse_arguments(Toy, ["--tags"], program="toy", about="")
    with pytest.raises(ConfigError, match="expected --key value, got 'word'"):
        parse_arguments(Toy, ["word"], program="toy", about="")


def test_yaml_cannot_make_python_objects(path):
    path.write_text("quantizer: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="python/object"):
        read(path)


def test_saved_recipe_reads_back(path, tmp_path):
    recipe = read(path)
    saved = save_recipe(recipe, tmp_path / "run")
    assert read_recipe(Toy, saved, {}) == recipe
    assert "# versions:" in saved.read_text()
    assert not list((tmp_path / "run").glob(".recipe*"))


def test_help_lists_every_field_with_its_meaning(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(Toy, ["--help"], program="toy", about="Trains a toy.")
    text = capsys.readouterr().out
    assert text == help_text(Toy, program="toy", about="Trains a toy.") + "\n"
    assert "--quantizer.type  one of" in text
    assert "--optimizer.learning_rate  (0.001)  Step size; above 0." in text
