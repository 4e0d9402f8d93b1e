"""All architectures are there, train alike, and are measured alike."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import compare_architectures
from benchmarks.compare_architectures import ARCHITECTURES, RECIPES


@pytest.fixture(autouse=True)
def cached_pictures(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("VISUAL_TOKENIZER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_every_small_recipe_of_an_architecture_is_compared():
    compared = {recipe for kind in ARCHITECTURES.values() for recipe in kind.values()}
    assert all((RECIPES / f"{recipe}.yaml").is_file() for recipe in compared)
    clips = {path.stem for path in RECIPES.glob("moving_openmoji_*.yaml")}
    assert clips <= compared


def test_a_comparison_trains_measures_and_is_not_repeated(tmp_path, capsys):
    words = ["--only", "vqvae", "--steps", "2", "--out", str(tmp_path), "--training.batch_size", "2"]
    small = ["--quantizer.initializer", "{type: random}", "--data.source.skin_tones", "false"]
    assert compare_architectures.main([*words, *small]) == 0
    (result,) = json.loads((tmp_path / "pictures.json").read_text())
    assert result["name"] == "vqvae"
    assert result["recipe"]["training"]["batch_size"] == 2
    assert result["bits_per_picture"] == pytest.approx(result["tokens_per_picture"] * 9)
    table = (tmp_path / "pictures.md").read_text()
    assert f"{result['heldout']['psnr_db']:.2f}" in table
    assert table.strip() in capsys.readouterr().out
    assert compare_architectures.main([*words, *small]) == 0
    assert "was done before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--only", "vqvea"], "'vqvea'"),
        (["--kind", "clips", "--only", "vqvae"], "of clips"),
        (["--steps", "0"], "--steps"),
        (["--encoder.type", "cnn"], "--encoder.type"),
    ],
)
def test_wrong_arguments_are_named(words, complaint, capsys):
    with pytest.raises(SystemExit):
        compare_architectures.main(words)
    assert complaint in capsys.readouterr().err
