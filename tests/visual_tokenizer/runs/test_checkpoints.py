from __future__ import annotations

import copy
import errno
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from visual_tokenizer.errors import UserError
from visual_tokenizer.runs import checkpoints
from visual_tokenizer.runs.checkpoints import (
    Checkpoint,
    CheckpointError,
    flatten_optimizer,
    list_checkpoints,
    newest_good,
    read_checkpoint,
    remove_unfinished,
    unflatten_optimizer,
    write_checkpoint,
)
from visual_tokenizer.runs.folder import RunLock, StepLog
from visual_tokenizer.runs.random_state import random_state, restore_random_state


def sample(step: int) -> Checkpoint:
    shared = torch.arange(6.0).view(2, 3)
    tensors = {"model": {"a": shared, "b": shared.T, "c": torch.tensor(step)}, "empty": {}}
    return Checkpoint(step=step, tensors=tensors, state={"step": step, "nothing": None})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_as_it_was_and_old_ones_go(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, sample(step), keep=2)
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    newest, complaints = newest_good(tmp_path)
    assert newest == tmp_path / "step-00000003"
    assert complaints == []
    loaded = read_checkpoint(newest)
    assert loaded.step == 3
    assert loaded.state == {"step": 3, "nothing": None}
    assert torch.equal(loaded.tensors["model"]["b"], torch.arange(6.0).view(2, 3).T)
    assert loaded.tensors["empty"] == {}
    assert {path.suffix for path in newest.iterdir()} == {".safetensors", ".json"}


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "bit", "missing"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(tmp_path, file, damage):
    for step in (1, 2):
        write_checkpoint(tmp_path, sample(step), keep=2)
    path = tmp_path / "step-00000002" / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-3])
    else:
        content[len(content) // 2] ^= 0x80
        path.write_bytes(content)
    newest, complaints = newest_good(tmp_path)
    assert newest.name == "step-00000001"
    assert f"step-00000002/{file}" in complaints[0]
    assert "going back to step-00000001" in complaints[0]


def test_without_a_good_checkpoint_a_run_is_not_begun_anew_silently(tmp_path):
    write_checkpoint(tmp_path, sample(1), keep=1)
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is intact: step-00000001/manifest.json"):
        newest_good(tmp_path)
    assert newest_good(tmp_path / "nothing") == (None, [])


def test_a_manifest_cannot_point_outside_its_folder(tmp_path):
    path = write_checkpoint(tmp_path, sample(1), keep=1)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"size": 0, "sha256": ""}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="secret is missing"):
        newest_good(tmp_path)


class Killed(BaseException):
    """Stands for the end of the process: nothing cleans up after it."""


@pytest.mark.parametrize("function", ["mkdir", "save_file", "fsync", "rename"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_kill_at_any_point_leaves_the_checkpoint_before(tmp_path, monkeypatch, function, call):
    write_checkpoint(tmp_path, sample(1), keep=1)
    owner = {"mkdir": Path, "save_file": checkpoints, "fsync": os, "rename": os}[function]
    original, calls = getattr(owner, function), []

    def kill(*arguments, **keywords):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, function, kill)

    def write_two():
        for step in (2, 3):
            write_checkpoint(tmp_path, sample(step), keep=1)

    with pytest.raises(Killed):
        write_two()
    monkeypatch.undo()
    newest, complaints = newest_good(tmp_path)
    assert newest is not None
    assert complaints == []
    remove_unfinished(tmp_path)
    assert all(name in ("step-00000001", "step-00000002") for name in names(tmp_path))
    assert newest.exists()


def test_a_full_disk_is_reported_and_costs_no_earlier_checkpoint(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, sample(1), keep=1)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(UserError, match=r"No space left on device.*step-00000001.*Free space"):
        write_checkpoint(tmp_path, sample(2), keep=1)
    assert names(tmp_path) == ["step-00000001"]


def test_only_what_an_interrupted_write_left_is_removed(tmp_path):
    ours = tmp_path / f"step-00000002.tmp-{'a' * 32}"
    others = ["step-00000002.tmp-mine", "notes", "step-2"]
    for name in [ours.name, *others]:
        (tmp_path / name).mkdir()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == sorted(others)
    assert list_checkpoints(tmp_path) == []


def test_the_same_step_can_be_written_again(tmp_path):
    path = write_checkpoint(tmp_path, sample(1), keep=1)
    (path / "state.json").write_text("damaged")
    write_checkpoint(tmp_path, sample(1), keep=1)
    assert newest_good(tmp_path) == (path, [])
    assert names(tmp_path) == ["step-00000001"]


def test_an_optimizer_survives_flattening():
    def build():
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, betas=(0.5, 0.9))

    def advance(layer, optimizer):
        layer(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    layer, optimizer = build()
    advance(layer, optimizer)
    tensors, plain = flatten_optimizer(copy.deepcopy(optimizer.state_dict()))
    assert all(isinstance(value, torch.Tensor) for value in tensors.values())
    other_layer, other = build()
    other_layer.load_state_dict(layer.state_dict())
    other.load_state_dict(unflatten_optimizer(tensors, json.loads(json.dumps(plain))))
    advance(layer, optimizer)
    advance(other_layer, other)
    assert torch.equal(layer.weight, other_layer.weight)


def test_all_random_generators_go_on_where_they_were():
    device = torch.device("cpu")
    torch.randn(3), random.gauss(0, 1), np.random.rand(3)
    state = random_state(device)
    assert all(value.dtype == torch.uint8 for value in state.values())
    first = (torch.rand(2).tolist(), random.random(), random.gauss(0, 1), np.random.rand(2).tolist())
    restore_random_state(state, device)
    assert (torch.rand(2).tolist(), random.random(), random.gauss(0, 1), np.random.rand(2).tolist()) == first


def test_a_folder_takes_one_run_at_a_time(tmp_path):
    lock = RunLock(tmp_path)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        RunLock(tmp_path)
    lock.release()
    RunLock(tmp_path).release()
    assert names(tmp_path) == []


@pytest.mark.parametrize("change", [{"pid": 2**22 + 1}, {"started": "1"}, None])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, change):
    held = RunLock(tmp_path)
    text = "half a li" if change is None else json.dumps({**json.loads(held.path.read_text()), **change})
    held.path.write_text(text)
    lock = RunLock(tmp_path)
    assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    held.release()  # no longer its lock
    assert lock.path.exists()
    lock.release()


def test_the_lock_of_another_host_is_stale_when_it_is_not_renewed(tmp_path):
    held = RunLock(tmp_path)
    held.path.write_text(json.dumps({**json.loads(held.path.read_text()), "host": "elsewhere"}))
    with pytest.raises(UserError, match="on elsewhere"):
        RunLock(tmp_path)
    os.utime(held.path, (0, 0))
    RunLock(tmp_path).release()


def test_the_log_drops_what_comes_after_the_checkpoint_and_half_lines(tmp_path):
    log = StepLog(tmp_path)
    for step in (1, 2, 3):
        log.append(step, {"loss": step / 2})
    with open(log.path, "a") as file:
        file.write('{"step": 4, "lo')
    log.truncate(2)
    assert log.read() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]
    log.append(3, {"loss": 9})
    assert [entry["step"] for entry in log.read()] == [1, 2, 3]
