"""Checkpoints of a tokenizer's training: complete or absent, verified on load, safetensors and JSON only.

A checkpoint `step-N` is a whole folder with a manifest (`runs/files.py`, `runs/manifest.py`). A kill or a full disk at
any point leaves the checkpoint before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from visual_tokenizer.errors import UserError
from visual_tokenizer.runs import files
from visual_tokenizer.runs.manifest import CheckpointError, list_numbered, newest_whole, write_manifest

STATE = "state.json"

_NAME = re.compile(r"step-(\d{8,})")


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
    try:
        # One that is there is replaced: a run that fell back to an older checkpoint comes by here again.
        with files.whole_folder(target, existing="replace") as unfinished:
            _write_files(unfinished, checkpoint)
    except (OSError, SafetensorError) as error:
        earlier = ", ".join(path.name for path in list_checkpoints(folder)) or "there is none"
        raise UserError(
            f"{target.name} could not be written to {folder}: {error}. Earlier checkpoints are untouched: {earlier}. "
            "Free space (or lower training.keep_checkpoints) and give the same command again."
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        files.discard(old)
    return target


def _write_files(folder: Path, checkpoint: Checkpoint) -> None:
    for name, tensors in checkpoint.tensors.items():
        # Copies: safetensors refuses tensors that share memory or are not contiguous.
        copies = {
            key: value.detach().cpu().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()
        }
        save_file(copies, folder / f"{name}.safetensors")
    (folder / STATE).write_text(json.dumps(checkpoint.state), encoding="utf-8")
    write_manifest(folder, step=checkpoint.step)


def remove_unfinished(folder: Path) -> None:
    """Remove what an interrupted write left; nothing of another name is touched."""
    files.remove_unfinished(folder, _NAME.pattern)


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the named checkpoints of `folder`, oldest first, unverified."""
    return list_numbered(folder, _NAME)


def newest_good(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest checkpoint that verifies, and a line for each damaged one that was passed over.

    Raises:
        CheckpointError: there are checkpoints, but none is intact.
    """
    checkpoint, complaints = newest_whole(list_checkpoints(folder))
    if checkpoint is not None:
        return checkpoint, [f"{complaint}; going back to {checkpoint.name}" for complaint in complaints]
    if complaints:
        raise CheckpointError(f"no checkpoint in {folder} is intact: {'; '.join(complaints)}")
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
