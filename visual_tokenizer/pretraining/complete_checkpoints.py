"""Which `checkpoint-N` folders are whole: transformers writes straight into them, `complete` is written last.

The marker is flushed to the disk after everything else; a folder without it is what an interrupted run left, and is
never resumed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from visual_tokenizer.runs.files import sync_folder

MARKER = "complete"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(folder: Path) -> None:
    """Flush every file of a checkpoint to the disk, then write its marker."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync_folder(path)
    (folder / MARKER).touch()
    sync_folder(folder)
    sync_folder(folder.parent)


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the folders `checkpoint-N` that are complete, by N."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if _NAME.fullmatch(path.name) and (path / MARKER).is_file()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Return the N of `checkpoint-N`."""
    return int(checkpoint.name.rpartition("-")[2])


def discard_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; a kill half-way leaves nothing that counts as complete."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def rotate_checkpoints(output_dir: Path, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints, and what interrupted runs left of older ones."""
    kept = list_checkpoints(output_dir)[-keep:]
    oldest = step_of(kept[0]) if kept else 0
    for folder in output_dir.iterdir():
        if _NAME.fullmatch(folder.name) and folder not in kept and step_of(folder) < oldest:
            discard_checkpoint(folder)
