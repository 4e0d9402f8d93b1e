"""Which checkpoints are whole: those whose files are as their manifest says.

`manifest.json` is written last and flushed after everything it lists, with size and SHA-256 of each file; a folder
without it is what an interrupted run left. Older runs' checkpoints are verified as far as they say: by sizes alone, or
by the empty file `complete` in place of a manifest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from visual_tokenizer.errors import UserError
from visual_tokenizer.runs.files import file_sha256, save_text, sync, sync_tree

MANIFEST = "manifest.json"
OLD_MARKER = "complete"
"""Stands in checkpoints of pretraining that were written before these had manifests."""
UNLISTED = (MANIFEST, "latest")
"""Files that a manifest does not list: itself, and DeepSpeed's note of its subfolder, which is written again."""
HASHING_THREADS = 4


class CheckpointError(UserError):
    """A checkpoint is damaged, incomplete, or belongs to another run."""


def write_manifest(folder: Path, **facts: Any) -> None:
    """Flush every file of a checkpoint to the disk, then write its manifest.

    Args:
        folder: with files of any depth.
        facts: further values for `read_facts`, in plain JSON types.
    """
    sync_tree(folder)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in UNLISTED]
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        digests = list(threads.map(file_sha256, paths))
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    save_text(json.dumps({**facts, "files": files}, indent=1), folder / MANIFEST)
    sync(folder.parent)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return the facts that were given to `write_manifest`; none where there is no manifest."""
    if not (folder / MANIFEST).is_file():
        return {}
    found = _read(folder)
    return {
        **found.get("facts", {}),
        **{name: found[name] for name in found if name not in ("facts", "files", "sizes")},
    }


def verify_manifest(folder: Path, *, contents: bool = True) -> None:
    """Compare every file with the manifest.

    Args:
        folder: of the checkpoint.
        contents: whether files are read whole and their SHA-256 compared, or only their sizes.

    Raises:
        CheckpointError: naming the file that is missing, of another size or changed.
    """
    if (folder / OLD_MARKER).is_file() and not (folder / MANIFEST).exists():
        return
    manifest = _read(folder)
    try:
        sizes = manifest["sizes"] if "sizes" in manifest else {k: f["size"] for k, f in manifest["files"].items()}
        digests = {name: str(entry["sha256"]) for name, entry in manifest.get("files", {}).items()}
        listed = [(str(name), int(size)) for name, size in sizes.items()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder.name}/{MANIFEST} can't be read: {error!r}") from error
    for name, size in listed:
        path, parts = folder / name, PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or not path.is_file():
            raise CheckpointError(f"{folder.name}/{name} is missing")
        if path.stat().st_size != size:
            found = path.stat().st_size
            raise CheckpointError(f"{folder.name}/{name} has {found} bytes, the manifest says {size}")
    if contents:
        with ThreadPoolExecutor(HASHING_THREADS) as threads:
            found_digests = threads.map(lambda name: file_sha256(folder / name), digests)
            for name, found_digest in zip(digests, found_digests, strict=True):
                if found_digest != digests[name]:
                    raise CheckpointError(f"{folder.name}/{name} is not as it was written: its SHA-256 differs")


def _read(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder.name}/{MANIFEST} is missing: the checkpoint is incomplete") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder.name}/{MANIFEST} can't be read: {error!r}") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{folder.name}/{MANIFEST} can't be read: it is not a JSON object")
    return manifest


def list_numbered(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Return the folders in `folder` whose whole name matches, by the number in the pattern's group, unverified."""
    found = [(pattern.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ())]
    numbered = [(int(match[1]), path) for match, path in found if match and path.is_dir()]
    return [path for _, path in sorted(numbered)]


def newest_whole(checkpoints: Sequence[Path]) -> tuple[Path | None, list[str]]:
    """Return the last of `checkpoints`, oldest first, that verifies, and a line for each later one that does not."""
    complaints: list[str] = []
    for checkpoint in reversed(checkpoints):
        try:
            verify_manifest(checkpoint)
        except CheckpointError as error:
            complaints.append(str(error))
        else:
            return checkpoint, complaints
    return None, complaints
