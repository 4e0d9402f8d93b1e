"""Folders, runs and shards that an earlier revision wrote load, resume and give what they gave then.

They lie in tests/written_before, whose README.md says how they were made. Paths in them are relative to that folder, so
a test works inside a copy of it. Only public names and programs are used.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoImageProcessor, AutoModelForCausalLM, BeitForMaskedImageModeling, Trainer

from mmlm import MultimodalProcessor, generate_images
from visual_tokenizer import VisualTokenizer, VisualTokenizerImageProcessor

ROOT = Path(__file__).parents[1]
WRITTEN = ROOT / "tests" / "written_before"
PROMPTS = ["a red apple at night", "a red car at night", "a red dog at night"]
DRAWINGS = {"greedy": {"temperature": 0.0}, "seeded": {"seed": 7}}
OF_THE_MACHINE = ("second", "runtime", "train_loss")
"""Parts of names of logged values that depend on the machine, or on where a run was interrupted."""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folders, in which the test works."""
    torch.set_num_threads(1)
    copy = tmp_path / "written"
    shutil.copytree(WRITTEN, copy)
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run `python -m PROGRAM WORDS` in this process; it must end well."""

    def run_program(program: str, *words: str) -> None:
        monkeypatch.setattr(sys, "argv", [program, *words])
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
                runpy.run_module(program, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code:
                pytest.fail(f"{program} ended with {end.code}")

    return run_program


class Caught(Exception):
    """Ends a training before its first step."""


def rows(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, words: list[str], count: int) -> list[Any]:
    """The first rows that training by these words would read."""
    found: list[Any] = []

    def catch(trainer: Trainer, *_: Any, **__: Any) -> None:
        found.extend(trainer.train_dataset[number] for number in range(count))
        raise Caught

    monkeypatch.setattr(Trainer, "train", catch)
    with pytest.raises(Caught):
        run("mmlm.train", *words)
    return [{name: values.tolist() for name, values in row.items()} for row in found]


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(WRITTEN / "expected.safetensors")


@pytest.fixture(scope="module")
def expected_rows() -> dict[str, list[dict[str, list[int]]]]:
    return json.loads((WRITTEN / "expected.json").read_text())


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def check_entries(now: list[dict[str, Any]], then: list[dict[str, Any]]) -> None:
    """Every value that was logged then is logged now, and equal."""
    for found, wanted in zip(now, then, strict=True):
        names = [name for name in wanted if not any(part in name for part in OF_THE_MACHINE)]
        assert {name: found.get(name) for name in names} == pytest.approx(
            {name: wanted[name] for name in names}, rel=1e-4, abs=1e-6
        )


def check_continuation(run_folder: Path, step: int, whole: Path) -> None:
    """The log keeps its lines up to `step` as they were and goes on as that of the unbroken run."""
    then, now, unbroken = read_log(WRITTEN / run_folder), read_log(run_folder), read_log(WRITTEN / whole)
    kept = [entry for entry in then if entry["step"] <= step]
    assert kept, "something was logged before the checkpoint"
    assert now[: len(kept)] == kept
    rest = [entry for entry in unbroken if entry["step"] > step]
    assert len(rest) > 5
    check_entries(now[len(kept) :], rest)


def check_weights(found: Path, wanted: Path) -> None:
    """The same tensors, up to what other processors' sums do to them."""
    found_weights, wanted_weights = load_file(found), load_file(wanted)
    assert found_weights.keys() == wanted_weights.keys()
    for name, weight in wanted_weights.items():
        assert_close(found_weights[name], weight, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and content of every file, and the folders' times."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in paths}


def pictures(folder: Path, count: int = 8) -> list[Image.Image]:
    return [Image.open(path) for path in sorted((folder / "pictures").glob("*.png"))[:count]]


@pytest.mark.parametrize("name", ["vq/whole/final", "fsq/final"])
def test_a_tokenizer_gives_equal_pixels_and_indices(name, written, expected):
    tokenizer = VisualTokenizer.from_pretrained(name)
    pixels = VisualTokenizerImageProcessor.from_pretrained(name)(pictures(written), return_tensors="pt")["pixel_values"]
    assert_close(pixels, expected[f"{name}/pixels"], rtol=0, atol=1e-5)
    with torch.no_grad():
        indices = tokenizer.encode(expected[f"{name}/pixels"])
        decoded = tokenizer.decode(expected[f"{name}/indices"])
    assert torch.equal(indices, expected[f"{name}/indices"])
    assert_close(decoded, expected[f"{name}/decoded"], rtol=0, atol=1e-5)


def test_an_interrupted_tokenizer_goes_on(written, run):
    (checkpoint,) = Path("vq/interrupted/checkpoints").iterdir()
    run("visual_tokenizer.train", "--config", "vq/interrupted/recipe.yaml")
    check_continuation(Path("vq/interrupted"), int(checkpoint.name.removeprefix("step-")), Path("vq/whole"))
    check_weights(Path("vq/interrupted/final/model.safetensors"), Path("vq/whole/final/model.safetensors"))


def test_a_tokenizer_measures_the_same(written, run):
    words = ["--metrics", "[psnr, ssim]", "--max_pictures", "8", "--output", "found.json"]
    run("visual_tokenizer.evaluate", "--model", "vq/whole/final", *words)
    found = json.loads(Path("found.json").read_text())["metrics"]
    logged = [entry for entry in read_log(Path("vq/whole")) if "heldout/psnr_db" in entry][-1]
    for name in ("psnr_db", "ssim", "codebook_usage"):
        assert found[name] == pytest.approx(logged[f"heldout/{name}"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "words", "shards"),
    [
        ("pairs", ["--config", "recipes/pairs.yaml"], "shards"),
        ("mixture", ["--config", "recipes/mixture.yaml"], "shards_of_documents"),
        (
            "packed",
            ["--config", "recipes/mixture.yaml", "--data.packing", "true", "--data.packing_buffer", "16"],
            "shards_of_documents",
        ),
    ],
)
def test_shards_are_read_as_they_are(name, words, shards, written, run, monkeypatch, expected_rows):
    before = state_of(written / shards)
    assert rows(run, monkeypatch, words, len(expected_rows[name])) == expected_rows[name]
    assert state_of(written / shards) == before


@pytest.mark.parametrize(
    ("recipe", "shards"), [("recipes/pairs.yaml", "shards"), ("recipes/mixture.yaml", "shards_of_documents")]
)
def test_shards_are_verified_and_stay(recipe, shards, written, run):
    before = state_of(written / shards)
    run("mmlm.data.tokenize", "--config", recipe)
    assert state_of(written / shards) == before


@pytest.mark.parametrize(
    ("recipe", "shards"), [("recipes/pairs.yaml", "shards"), ("recipes/mixture.yaml", "shards_of_documents")]
)
def test_shards_come_out_the_same_when_written_anew(recipe, shards, written, run):
    run("mmlm.data.tokenize", "--config", recipe, "--data.shards_dir", "again")
    then = {path.relative_to(shards): path for path in Path(shards).rglob("*") if path.is_file()}
    assert {path.relative_to("again") for path in Path("again").rglob("*") if path.is_file()} == then.keys()
    for name, path in then.items():
        if path.suffix == ".arrow" or path.name in ("header.json", "plan.json"):
            assert Path("again", name).read_bytes() == path.read_bytes(), name


def test_an_interrupted_language_model_goes_on(written, run):
    (checkpoint,) = Path("lm/interrupted").glob("checkpoint-*")
    before = state_of(written / "shards")
    run("mmlm.train", "--config", "lm/interrupted/recipe.yaml")
    check_continuation(Path("lm/interrupted"), int(checkpoint.name.removeprefix("checkpoint-")), Path("lm/whole"))
    check_weights(Path("lm/interrupted/final/model.safetensors"), Path("lm/whole/final/model.safetensors"))
    assert state_of(written / "shards") == before


def test_a_language_model_gives_equal_logits(written, expected, expected_rows):
    model = AutoModelForCausalLM.from_pretrained("lm/whole/final").eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(expected_rows["pairs"][0]["input_ids"])[None]).logits
    assert_close(logits, expected["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_language_model_draws_equal_pictures(name, written, expected, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained("lm/whole/final").eval()
    processor = MultimodalProcessor.from_pretrained("lm/whole/final")
    decoded: list[torch.Tensor] = []
    decode = processor.decode_indices
    monkeypatch.setattr(processor, "decode_indices", lambda indices: decoded.append(indices) or decode(indices))
    drawn = generate_images(model, processor, PROMPTS, **DRAWINGS[name])
    found = torch.from_numpy(np.stack([np.asarray(picture) for picture in drawn]))
    assert (found.short() - expected[f"{name}/pictures"].short()).abs().max() <= 1  # a rounding of float to byte
    assert torch.equal(torch.cat(decoded), expected[f"{name}/indices"])


def test_a_merged_model_is_what_a_merge_gives(written, run):
    run("mmlm.cli", "merge", "--config", "recipes/merge.yaml", "--output_dir", "again")
    for name in ("tokenizer.json", "processor_config.json"):
        assert json.loads(Path("again", name).read_text()) == json.loads(Path("merged", name).read_text())
    check_weights(Path("again/model.safetensors"), Path("merged/model.safetensors"))


def test_an_interrupted_pretraining_goes_on(written, run):
    (checkpoint,) = Path("beit/interrupted").glob("checkpoint-*")
    run("visual_tokenizer.pretrain", "--config", "beit/interrupted/recipe.yaml")
    check_continuation(Path("beit/interrupted"), int(checkpoint.name.removeprefix("checkpoint-")), Path("beit/whole"))
    check_weights(Path("beit/interrupted/final/model.safetensors"), Path("beit/whole/final/model.safetensors"))


def test_a_pretrained_model_gives_equal_logits_and_measures_the_same(written, run, expected):
    pixels = AutoImageProcessor.from_pretrained("beit/whole/final")(pictures(written), return_tensors="pt").pixel_values
    assert_close(pixels, expected["fsq/final/pixels"], rtol=0, atol=1e-5)
    model = BeitForMaskedImageModeling.from_pretrained("beit/whole/final").eval()
    masked = (torch.arange(16) % 3 == 0)[None].expand(len(pixels), -1)
    with torch.no_grad():
        assert_close(model(pixels, masked).logits, expected["beit/logits"], rtol=0, atol=1e-5)
    run("visual_tokenizer.probe", "--model", "beit/whole/final", "--label_column", "null", "--output", "found.json")
    then, now = (
        json.loads(Path(name).read_text())["metrics"] for name in ("beit/whole/final/probe.json", "found.json")
    )
    assert now == pytest.approx(then, rel=1e-4)


REFUSALS = {
    "radius must be above 0, got -1.0": ["--quantizer.radius", "-1.0"],
    "beta must be above 0, got 0": ["--losses", "[{type: smooth_l1, beta: 0}]"],
    "update must be one without gradients, got 'gradient'": ["--quantizer.update.type", "gradient"],
}
"""What the parts of the plugin folder say to what words."""

WITH_PLUGINS = """
import contextlib, io, json, runpy, sys, torch
from visual_tokenizer import VisualTokenizer

tokenizer = VisualTokenizer.from_pretrained("anchored/final")
indices = tokenizer.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
assert tokenizer.codebook_size == 16 and tuple(tokenizer.decode(indices).shape) == (2, 3, 16, 16)
for words in json.loads(sys.argv[1]):
    sys.argv = ["train", "--config", "plugins/recipes/tokenizer/anchored.yaml", "--output_dir", "again", *words]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            runpy.run_module("visual_tokenizer.train", run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, said.getvalue()]))
"""
"""Loads a tokenizer of plugins' parts, then trains by their recipe; prints exit code and stderr of each time."""


def test_parts_of_a_plugin_folder_train_and_refuse_as_before(written):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VISUAL_TOKENIZER_PLUGINS": "plugins", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITH_PLUGINS, json.dumps([[], *REFUSALS.values()])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (code, said), *refused = [json.loads(line) for line in done.stdout.splitlines()]
    assert code == 0, said
    now = read_log(Path("again"))
    assert [entry["step"] for entry in now if "loss" in entry] == [1, 2]
    check_entries(now, read_log(Path("anchored")))
    for message, (code, said) in zip(REFUSALS, refused, strict=True):
        assert code == 2, said
        assert message in said
        assert "Traceback" not in said
