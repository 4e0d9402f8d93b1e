from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import visual_tokenizer
from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig, evaluate
from visual_tokenizer.data.batches import DataSection, PictureSet, with_data_of_model
from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.evaluation.reconstruction import (
    bits_per_picture,
    build_metrics,
    evaluate_reconstruction,
    measure_reconstruction,
)
from visual_tokenizer.metrics.psnr import psnr
from visual_tokenizer.recipe import recipe_to_dict
from visual_tokenizer.registry import ConfigError

METRICS = ["psnr", "ssim"]


@pytest.fixture
def model(tiny_recipe, tmp_path) -> Path:
    """A tokenizer with the recipe beside it, as a run leaves them."""
    recipe = tiny_recipe()
    torch.manual_seed(0)
    sections = {name: getattr(recipe, name).to_dict() for name in ("encoder", "decoder")}
    quantizer = {"type": "vq", "codebook_size": 16, "code_dim": 4}
    config = VisualTokenizerConfig(image_size=16, quantizer=quantizer, **sections)
    VisualTokenizer(config).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "recipe.yaml").write_text(yaml.safe_dump(recipe_to_dict(recipe)))
    return tmp_path / "model"


def report(arguments: list[str], output: Path) -> dict:
    assert evaluate.main([*arguments, "--metrics", "[psnr, ssim]", "--output", str(output)]) == 0
    return json.loads(output.read_text())


def test_the_report_holds_the_means_over_the_split_and_says_how(model, tiny_recipe, tmp_path):
    found = report(["--model", str(model)], tmp_path / "report.json")
    tokenizer = VisualTokenizer.from_pretrained(model).eval()
    section = tiny_recipe().data
    source = SourceConfig.family.build(section.source)
    (batch,) = PictureSet(source, "heldout", section, image_size=16, max_pictures=None).batches(64)
    indices = tokenizer.encode(batch["pixels"])
    expected = psnr(batch["pixels"], tokenizer.decode(indices)).mean().item()
    assert found["metrics"]["psnr_db"] == pytest.approx(expected, rel=1e-5)
    assert found["metrics"]["codebook_dead"] == 16 - len(indices.unique())
    assert found["bits_per_picture"] == 64 * 4
    assert found["protocol"]["pictures"] == len(batch["pixels"])
    assert found["protocol"]["split"] == "heldout"
    assert found["protocol"]["source"]["type"] == "image_folder"
    assert [metric["type"] for metric in found["protocol"]["metrics"]] == [*METRICS, "codebook_usage"]
    assert found["bits_per_pixel"] == 64 * 4 / 16**2
    assert found["tokens_per_picture"] == 64
    assert found["versions"]["torch"] == torch.__version__
    with Image.open(tmp_path / "report.png") as grid:
        assert grid.format == "PNG"


def test_batch_size_changes_nothing_and_max_pictures_does(model, tmp_path):
    results = [
        report(["--model", str(model), f"--batch_size={size}"], tmp_path / f"{size}.json")["metrics"]
        for size in (1, 3, 64)
    ]
    assert results[0] == pytest.approx(results[2], rel=1e-5)
    assert results[1] == pytest.approx(results[2], rel=1e-5)
    words = ["--model", str(model), "--split", "all", "--max_pictures", "5", "--sample_pictures", "0"]
    few = report(words, tmp_path / "few.json")
    assert few["protocol"]["pictures"] == 5
    assert not (tmp_path / "few.png").exists()


def test_the_processes_together_see_each_picture_once(tiny_recipe):
    section = tiny_recipe().data
    source = SourceConfig.family.build(section.source)

    def paths(process: int, processes: int) -> list[bytes]:
        part = {"max_pictures": 31, "process": process, "processes": processes}
        pictures = PictureSet(source, "all", section, image_size=4, **part)
        return [picture.numpy().tobytes() for batch in pictures.batches(3) for picture in batch["pixels"]]

    whole = paths(0, 1)
    assert len(whole) == 31
    assert sorted(paths(0, 3) + paths(1, 3) + paths(2, 3)) == sorted(whole)
    assert paths(40, 41) == []


@pytest.mark.slow
def test_two_processes_report_what_one_does(model, tmp_path):
    one = report(["--model", str(model)], tmp_path / "one.json")
    root = Path(visual_tokenizer.__file__).parents[1]
    processes = root / "recipes" / "accelerate" / "cpu_2_processes.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(processes)]
    command += ["-m", "visual_tokenizer.evaluate", "--model", str(model), "--metrics", "[psnr, ssim]"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(root)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((model / "evaluation-heldout.json").read_text())
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-6)
    assert two["protocol"] == one["protocol"]


def test_a_perfect_tokenizer_scores_perfectly():
    class Identity(torch.nn.Module):
        codebook_size, num_codebooks = 2, 1

        def encode(self, pixels):
            self.pixels = pixels
            return torch.zeros(len(pixels), 1, 1, dtype=torch.int64)

        def decode(self, indices):
            return self.pixels

    batches = [{"pixels": torch.rand(size, 3, 16, 16)} for size in (3, 1)]
    results = evaluate_reconstruction(Identity(), batches, METRICS, torch.device("cpu"))
    assert results["psnr_db"] == 100
    assert results["ssim"] == pytest.approx(1)
    assert (results["codebook_usage"], results["codebook_dead"], results["codebook_tokens"]) == (0.5, 1, 4)


class Clips(torch.nn.Module):
    """Half as many latent frames as frames, 2 x 2 tokens each; gives back the pixels, darkened."""

    codebook_size, num_codebooks = 4, 1

    def encode(self, pixels):
        self.pixels = pixels
        return torch.zeros(len(pixels), pixels.shape[2] // 2, 2, 2, dtype=torch.int64)

    def decode(self, indices):
        return self.pixels * 0.9


def test_clips_are_measured_by_the_shapes_that_encode_returns():
    batches = [{"pixels": torch.rand(size, 3, 4, 16, 16)} for size in (2, 1)]
    found = measure_reconstruction(Clips(), batches, METRICS, torch.device("cpu"))
    assert (found.pictures, found.tokens, found.pixels) == (3, 8, 4 * 16 * 16)
    frames = torch.cat([batch["pixels"] for batch in batches]).transpose(1, 2).flatten(0, 1)
    assert found.values["psnr_db"] == pytest.approx(psnr(frames, frames * 0.9).mean().item())
    assert found.values["codebook_tokens"] == 24


def test_metrics_are_names_or_sections():
    sections = ["psnr", {"type": "perceptual_distance", "layers": [0], "min_size": 32}]
    built = build_metrics(sections, 8, 1)
    assert [metric.config.type for metric in built] == ["psnr", "perceptual_distance", "codebook_usage"]
    assert built[1].layers == [0]
    assert built[2].codebook_size == 8
    assert len(build_metrics(["codebook_usage"], 8, 1)) == 1
    batches = [{"pixels": torch.rand(2, 3, 4, 16, 16)}]
    with pytest.raises(ConfigError, match="psnr_db twice"):
        measure_reconstruction(Clips(), batches, ["psnr", "psnr"], torch.device("cpu"))


def test_bits_grow_with_the_picture(model):
    tokenizer = VisualTokenizer.from_pretrained(model)
    assert bits_per_picture(tokenizer, 16) == 8 * 8 * 4
    assert bits_per_picture(tokenizer, 32) == 16 * 16 * 4


def test_the_mode_of_the_tokenizer_stays_as_it_was(model):
    tokenizer = VisualTokenizer.from_pretrained(model).train()
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    evaluate_reconstruction(tokenizer, [{"pixels": torch.rand(2, 3, 16, 16)}], ["psnr"], torch.device("cpu"))
    assert tokenizer.training
    assert all(torch.equal(before[name], value) for name, value in tokenizer.state_dict().items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "test"], "split must be one of train, heldout, all, got 'test'"),
        (["--metrics", "[psnrr]"], "Did you mean 'psnr'"),
        (["--metrics", "[{type: psnr, level: 1}]"], "unknown key 'level'"),
        (["--metrics", "[3]"], "names or mappings"),
        (["--metrics", "[ms_ssim]"], "at least 176 x 176 for MS-SSIM, got (16, 16)"),
        (["--metrics", "[{type: fid, network_weights: /nowhere.pth}]"], "no file '/nowhere.pth'"),
        (["--metrics", "[face_fidelity]"], "needs weights"),
        (["--data.source.folder", "/nowhere"], "there is no folder /nowhere"),
        (["--image_size", "15"], "must be a multiple of 2"),
    ],
)
def test_errors_end_in_one_line(model, words, message, capsys):
    assert evaluate.main(["--model", str(model), "--output", str(model / "x.json"), *words]) == 2
    said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("visual_tokenizer.evaluate: error: ")
    assert message in said


def test_the_pictures_come_from_the_recipe_unless_told_otherwise(model, tiny_recipe):
    words = with_data_of_model(["--model", str(model), "--data.num_workers", "7"])
    parsed = evaluate.parse_arguments(evaluate.TokenizerEvaluationRecipe, words, program="evaluate", about="")
    assert parsed.data.source == tiny_recipe().data.source
    assert parsed.data.num_workers == 7
    assert with_data_of_model(["--model", "nowhere"]) == ["--model", "nowhere"]
    assert isinstance(parsed.data, DataSection)
