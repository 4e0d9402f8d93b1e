"""Checkpoints of a training run: complete or absent, verified on load, safetensors and JSON only.

A checkpoint is written to `step-N.tmp-<uuid>`, every file is flushed to the disk, `manifest.json` lists sizes
and SHA-256 sums, and only then the folder gets its name `step-N`. A kill or a full disk at any point leaves the
checkpoint before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from visual_tokenizer.errors import UserError

MANIFEST = "manifest.json"
STATE = "state.json"

_FINISHED = re.compile(r"step-(\d{8,})")
_UNFINISHED = re.compile(r"step-\d{8,}\.tmp-[0-9a-f]{32}")


class CheckpointError(UserError):
    """A checkpoint is damaged, or belongs to another run."""


@dataclass
class Checkpoint:
    """What a checkpoint holds: named groups of tensors, and plain values."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def checkpoint_name(step: int) -> str:
    """Return the name of the folder of step `step`."""
    return f"step-{step:08d}"


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint below `folder`, then remove all but the newest `keep`.

    Args:
        folder: made if missing.
        checkpoint: tensors may be on any device and may share memory.
        keep: 1 or more.

    Raises:
        UserError: the disk is full, or the folder can't be written; what was there is untouched.
    """
    target = folder / checkpoint_name(checkpoint.step)
    beside = folder / f"{target.name}.tmp-{uuid.uuid4().hex}"
    try:
        beside.mkdir(parents=True)
        _write_files(beside, checkpoint)
        if target.exists():  # a run that fell back to an older checkpoint comes by here again
            _discard(target)
        os.rename(beside, target)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        earlier = ", ".join(path.name for path in list_checkpoints(folder)) or "there is none"
        raise UserError(
            f"{target.name} could not be written to {folder}: {error}. Earlier checkpoints are untouched: {earlier}. "
            "Free space (or lower training.keep_checkpoints) and give the same command again."
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        _discard(old)
    return target


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    for name, tensors in checkpoint.tensors.items():
        # Copies: safetensors refuses tensors that share memory or are not contiguous.
        copies = {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()
        }
        save_file(copies, folder / f"{name}.safetensors")
    (folder / STATE).write_text(json.dumps(checkpoint.state), encoding="utf-8")
    files = {path.name: {"size": path.stat().st_size, "sha256": _digest(path)} for path in sorted(folder.iterdir())}
    manifest = {"step": checkpoint.step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(checkpoint: Path) -> None:
    """Remove a checkpoint so that a kill half-way leaves nothing that looks like one."""
    doomed = checkpoint.with_name(f"{checkpoint.name}.tmp-{uuid.uuid4().hex}")
    os.rename(checkpoint, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what an interrupted write left; nothing of another name is touched."""
    if folder.is_dir():
        for path in folder.iterdir():
            if _UNFINISHED.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the named checkpoints of `folder`, oldest first, unverified."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _FINISHED.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def verify_checkpoint(checkpoint: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: naming the file that is missing, of another size or changed.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        files = {str(name): (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint.name}/{MANIFEST} can't be read: {error!r}") from error
    for name, (size, digest) in files.items():
        path = checkpoint / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"{checkpoint.name}/{name} is missing")
        if path.stat().st_size != size:
            found = path.stat().st_size
            raise CheckpointError(f"{checkpoint.name}/{name} has {found} bytes, the manifest says {size}")
        if _digest(path) != digest:
            raise CheckpointError(f"{checkpoint.name}/{name} is not as it was written: its SHA-256 differs")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that verifies, and a line for each damaged one that was passed over.

    Raises:
        CheckpointError: there are checkpoints, but none is good.
    """
    complaints: list[str] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(checkpoint)
        except CheckpointError as error:
            complaints.append(str(error))
        else:
            return checkpoint, [f"{complaint}; going back to {checkpoint.name}" for complaint in complaints]
    if complaints:
        raise CheckpointError(f"no checkpoint in {folder} is good: {'; '.join(complaints)}")
    return None, []


def read_checkpoint(checkpoint: Path) -> Checkpoint:
    """Load a checkpoint that was verified; tensors come back on the CPU."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    tensors = {path.stem: load_file(path) for path in sorted(checkpoint.glob("*.safetensors"))}
    return Checkpoint(step=int(checkpoint.name.removeprefix("step-")), tensors=tensors, state=state)


def flatten_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split `optimizer.state_dict()` into tensors by `<parameter>.<name>` and plain JSON values."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for parameter, entries in state["state"].items():
        for name, value in entries.items():
            (tensors if isinstance(value, Tensor) else values)[f"{parameter}.{name}"] = value
    return tensors, {"values": values, "param_groups": state["param_groups"]}


def unflatten_optimizer(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `state_dict` that `flatten_optimizer` split."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**plain["values"], **tensors}.items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = value
    return {"state": state, "param_groups": plain["param_groups"]}
