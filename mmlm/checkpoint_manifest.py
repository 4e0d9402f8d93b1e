"""Which of a run's checkpoint folders are complete.

transformers, DeepSpeed and FSDP write straight into `checkpoint-N`. `manifest.json`, written last and
flushed after everything it lists, marks a folder as complete; a folder without it, or with a file of another
size, is never resumed. What a run needs to know of how it was written stands there too, for DeepSpeed's own note of it
(`latest`) may be empty after a crash.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from visual_tokenizer.errors import UserError
from visual_tokenizer.runs.files import sync_folder

MANIFEST_NAME = "manifest.json"
UNLISTED = (MANIFEST_NAME, "latest")
"""Files that a manifest does not list: itself, and what it says better."""
_NAME = re.compile(r"checkpoint-(\d+)")


class IncompleteCheckpointError(UserError):
    """A checkpoint lacks its manifest, or a file of it."""


def complete_checkpoint(folder: Path, facts: Mapping[str, Any] | None = None) -> None:
    """Flush every file of a checkpoint to the disk, then write its manifest, with further facts for `read_facts`."""
    sizes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in UNLISTED:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
    beside = folder / f".{MANIFEST_NAME}.{uuid.uuid4().hex}"
    with open(beside, "w", encoding="utf-8") as file:
        json.dump({"facts": dict(facts or {}), "sizes": sizes}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, folder / MANIFEST_NAME)
    sync_folder(folder)
    sync_folder(folder.parent)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the facts that were given to `complete_checkpoint`; none for older checkpoints."""
    path = folder / MANIFEST_NAME
    return json.loads(path.read_text(encoding="utf-8")).get("facts", {}) if path.is_file() else {}


def verify_checkpoint(folder: Path) -> None:
    """Raise `IncompleteCheckpointError`, naming the file, unless every file of the manifest is there in its
    size."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise IncompleteCheckpointError(
            f"{folder} is incomplete: it has no {MANIFEST_NAME}, its writing was interrupted"
        )
    try:
        sizes = json.loads(path.read_text(encoding="utf-8"))["sizes"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise IncompleteCheckpointError(f"{path} cannot be read: {error}") from error
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file():
            raise IncompleteCheckpointError(f"{folder} is incomplete: {name} is missing")
        if file.stat().st_size != size:
            raise IncompleteCheckpointError(
                f"{folder} is incomplete: {name} has {file.stat().st_size} bytes, the manifest says {size}"
            )


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the folders `checkpoint-N`, complete or not, by N."""
    if not output_dir.is_dir():
        return []
    found = [path for path in output_dir.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def newest_complete(output_dir: Path) -> tuple[Path | None, list[str]]:
    """Return the newest complete checkpoint, and why each newer one is passed over."""
    complaints = []
    for folder in reversed(list_checkpoints(output_dir)):
        try:
            verify_checkpoint(folder)
        except IncompleteCheckpointError as error:
            complaints.append(str(error))
        else:
            return folder, complaints
    return None, complaints


def discard_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; a kill half-way leaves nothing that counts as complete."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def rotate_checkpoints(output_dir: Path, keep: int) -> None:
    """Remove all but the newest `keep` complete checkpoints, and incomplete ones that are older than
    these."""
    kept = 0
    for folder in reversed(list_checkpoints(output_dir)):
        if kept >= keep:
            discard_checkpoint(folder)
            continue
        try:
            verify_checkpoint(folder)
            kept += 1
        except IncompleteCheckpointError:
            continue
