"""Any folder that a user gives to any program, broken in any way, ends in one line that says where and what.

A program's row names the folder that it is given; the ways to break that folder are the table's columns.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from folder_programs import PROGRAMS, TOKENIZER_RECIPE, in_process, lm_recipe, merge_words, source, typed
from whole_folders import SIZE, Folders, write_folders

import mmlm.data.tokenize
from visual_tokenizer import VisualTokenizer, train

UNFINISHED = {"recipe.yaml", "run.lock", "log.jsonl"}
"""What a run that has not begun may leave in its folder."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    whole = write_folders(tmp_path_factory.mktemp("whole"))
    assert mmlm.data.tokenize.main(lm_recipe(str(whole.merged), str(whole.root / "run"), whole)) == 0
    return whole


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave what libraries warn of off stderr, reach no network, and listen on no port."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: pytest.fail("it listens"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    transformers.logging.set_verbosity(level)
    transformers.logging.enable_progress_bar()


@pytest.mark.parametrize(
    ("program", "way"), [(program, way) for program, row in PROGRAMS.items() for way in row.ways], ids=str
)
def test_one_line_names_the_folder_and_what_is_wrong(
    program: str, way: str, folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = PROGRAMS[program]
    if "may not be read" in way and os.geteuid() == 0:
        pytest.skip("root may read everything")
    given, out = tmp_path / "given", tmp_path / "out"
    shutil.copytree(getattr(folders, row.given), given)
    given = row.ways[way][0](given, folders) or given
    code, stderr = row.run(row.words(str(given), str(out), folders), capsys)
    assert code == 2, stderr
    (line,) = stderr.splitlines()
    assert line.startswith(f"{row.name}: error: ")
    assert str(given) in line
    assert len(line) < 900
    assert re.search(row.ways[way][1], line), line
    left = {path.name for path in out.rglob("*") if path.is_file()}
    assert left <= UNFINISHED, left


@pytest.fixture(scope="module")
def run(folders: Folders) -> Path:
    """A training of two steps with a checkpoint of each, whose result was taken away."""
    folder = folders.root / "training"
    words = [f"--output_dir={folder}", *source(folders), *TOKENIZER_RECIPE]
    assert train.main([*words, "--training.max_steps=2", "--training.checkpoint_every_steps=1"]) == 0
    shutil.rmtree(folder / "final")
    return folder


def damage_all(*names: str) -> Callable[[Path], Any]:
    return lambda folder: [path.write_bytes(b"{") for name in names for path in folder.glob(f"checkpoints/*/{name}")]


def as_file(name: str) -> Callable[[Path], Any]:
    def replace(folder: Path) -> None:
        if name:
            shutil.rmtree(folder / name)
        else:
            shutil.rmtree(folder)
        (folder / name).write_text("a file")

    return replace


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_all("*"), r"checkpoints.*manifest\.json"),
        (damage_all("manifest.json"), r"checkpoints.*manifest\.json"),
        (damage_all("model.safetensors"), r"checkpoints.*model\.safetensors"),
        (damage_all("state.json"), r"checkpoints.*state\.json"),
        (as_file("checkpoints"), "checkpoints"),
        (as_file(""), ""),
        (lambda folder: [(folder / "log.jsonl").unlink(), (folder / "log.jsonl").mkdir()], "log"),
    ],
    ids=["all files", "manifests", "weights", "states", "a file as checkpoints", "a file", "a folder as the log"],
)
def test_a_run_that_cannot_go_on(
    damage: Callable[[Path], Any], words: str, run: Path, folders: Folders, tmp_path: Path, capsys: Any
) -> None:
    given = tmp_path / "given"
    shutil.copytree(run, given)
    damage(given)
    recipe = [f"--output_dir={given}", *source(folders), *TOKENIZER_RECIPE, "--training.max_steps=3"]
    code, stderr = in_process(train.main)(recipe, capsys)
    assert code == 2, stderr
    (line,) = stderr.splitlines()
    assert line.startswith("visual_tokenizer.train: error: ")
    assert str(given) in line
    assert re.search(words, line), line
    assert not (given / "final").exists()


def test_a_run_goes_on_without_what_it_writes_anew(run: Path, folders: Folders, tmp_path: Path) -> None:
    given = tmp_path / "given"
    shutil.copytree(run, given)
    (given / "recipe.yaml").write_text("data: [")
    log = (given / "log.jsonl").read_bytes()
    (given / "log.jsonl").write_bytes(b"\xff\xfe not text\n" + log + b'{"step": 2, "cut')
    (given / "run.lock").write_text("{")
    (given / "checkpoints/step-00000002/model.safetensors").write_bytes(b"")
    recipe = [f"--output_dir={given}", *source(folders), *TOKENIZER_RECIPE, "--training.max_steps=2"]
    assert train.main(recipe) == 0
    assert VisualTokenizer.from_pretrained(given / "final").config.image_size == SIZE
    assert {json.loads(line)["step"] for line in (given / "log.jsonl").read_text().splitlines()} == {1, 2}


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(60)], ids=["zero bytes", "cut short", "no numbers"])
def test_a_damaged_gguf_file(content: bytes, folders: Folders, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    code, stderr = typed(merge_words(file, folders.tokenizer, str(tmp_path / "out")), capsys)
    assert code == 2, stderr
    (line,) = stderr.splitlines()
    assert line.startswith("mmlm merge: error: ")
    assert "model.gguf" in line
    assert not (tmp_path / "out").exists()
