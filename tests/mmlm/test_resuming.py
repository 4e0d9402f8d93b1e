"""Checkpoints are whole or ignored, and an interrupted run goes on bit for bit."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mmlm.recipes.training import LMRecipe
from mmlm.training.build import train
from visual_tokenizer.errors import UserError
from visual_tokenizer.hf_training.checkpoints import complete_checkpoint, find_checkpoint, list_checkpoints
from visual_tokenizer.runs.manifest import CheckpointError, read_facts, verify_manifest


def test_an_incomplete_checkpoint_is_passed_over_and_named(
    recipe_fields: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    make_recipe: Callable[..., LMRecipe],
) -> None:
    recipe = make_recipe(recipe_fields)
    train(recipe)
    run = tmp_path / "run"
    newest, older = run / "checkpoint-6", run / "checkpoint-3"
    verify_manifest(newest)
    optimizer = newest / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"optimizer\.pt has \d+ bytes"):
        verify_manifest(newest)
    assert find_checkpoint(recipe.output_dir, recipe.training.resume) == older
    assert "optimizer.pt" in caplog.text
    assert "checkpoint-3" in caplog.text
    (older / "manifest.json").unlink()
    (newest / "model.safetensors").unlink()
    assert find_checkpoint(recipe.output_dir, recipe.training.resume) is None
    assert "starting from the beginning" in caplog.text


def test_a_run_goes_on_over_an_incomplete_checkpoint(
    recipe_fields: dict[str, Any], tmp_path: Path, make_recipe: Callable[..., LMRecipe], losses_of: Callable[..., Any]
) -> None:
    recipe = make_recipe(recipe_fields)
    train(recipe)
    run = tmp_path / "run"
    whole = losses_of(run)
    (run / "checkpoint-6" / "manifest.json").unlink()
    (run / "checkpoint-6" / "rng_state_5.pth").write_bytes(b"of a run with more processes")
    train(recipe)
    assert losses_of(run) == whole
    verify_manifest(run / "checkpoint-6")
    assert not (run / "checkpoint-6" / "rng_state_5.pth").exists()


def test_rotation_keeps_the_newest_complete_ones(tmp_path: Path) -> None:
    def write(step: int, keep: int, is_complete: bool = True) -> list[str]:
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "global_step1").mkdir(parents=True)
        (folder / "global_step1" / "weights").write_bytes(b"x" * step)
        if is_complete:
            complete_checkpoint(folder, keep)
        return [path.name for path in list_checkpoints(tmp_path)]

    (tmp_path / "checkpoint-of-mine").mkdir()
    write(1, keep=2)
    write(2, keep=2)
    write(3, keep=2, is_complete=False)
    assert write(10, keep=2) == ["checkpoint-2", "checkpoint-3", "checkpoint-10"]
    assert write(11, keep=1) == ["checkpoint-11"]
    assert (tmp_path / "checkpoint-of-mine").exists()


def test_checkpoints_of_older_releases_are_found(tmp_path: Path) -> None:
    sized, marked = tmp_path / "sized" / "checkpoint-2", tmp_path / "marked" / "checkpoint-2"
    for folder in (sized, marked):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"xyz")
        (folder.parent / "checkpoint-3").mkdir()
    (sized / "manifest.json").write_text(json.dumps({"facts": {"sharding": "none"}, "sizes": {"weights": 3}}))
    (marked / "complete").touch()
    for folder in (sized, marked):
        assert find_checkpoint(str(folder.parent), "auto") == folder
    assert read_facts(sized) == {"sharding": "none"}
    (sized / "weights").write_bytes(b"xy")
    assert find_checkpoint(str(sized.parent), "auto") is None


def test_resume_never_refuses_a_used_folder_and_a_named_checkpoint_is_taken(
    recipe_fields: dict[str, Any], tmp_path: Path, make_recipe: Callable[..., LMRecipe]
) -> None:
    train(make_recipe(recipe_fields))
    with pytest.raises(UserError, match=r"training\.resume is never.*checkpoint-6"):
        find_checkpoint(str(tmp_path / "run"), "never")
    named = str(tmp_path / "run" / "checkpoint-3")
    assert str(find_checkpoint(str(tmp_path / "run"), named)) == named
    with pytest.raises(CheckpointError):
        find_checkpoint(str(tmp_path / "run"), str(tmp_path))


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_bit_for_bit(
    recipe_fields: dict[str, Any], tmp_path: Path, make_recipe: Callable[..., LMRecipe], losses_of: Callable[..., Any]
) -> None:
    fields = {**recipe_fields, "training.max_steps": 40, "training.checkpoint_every_steps": 3}
    whole = make_recipe(fields, output_dir=str(tmp_path / "whole"))
    arguments = [f"--{key}={json.dumps(value)}" for key, value in fields.items()]
    command = [sys.executable, "-m", "mmlm.train", *arguments, f"--output_dir={tmp_path / 'killed'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if len(losses_of(tmp_path / "killed")) >= 8:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = losses_of(tmp_path / "killed")
    assert 8 <= len(reached) < 40, "the run must be killed in its middle"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert re.search(r"resuming from .*checkpoint-\d+", done.stderr)
    train(whole)
    unbroken = losses_of(tmp_path / "whole")
    assert losses_of(tmp_path / "killed") == unbroken
    one, other = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "final").state_dict() for name in ("whole", "killed")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
