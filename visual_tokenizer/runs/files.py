"""The one way to write: a file or folder that is there as a whole, or as it was before.

What is written stands beside its place, under a name that begins with a dot. It is flushed to the disk and takes its
place in one step. An error removes it; what a kill leaves, the folder's next run removes with `remove_unfinished`.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from visual_tokenizer.errors import MissingFileError, UserError

BLOCK_BYTES = 1 << 20
"""Read at a time; hashing so much releases the interpreter's lock."""
_UNFINISHED = r"\.({names})\.[0-9a-f]{{32}}|({names})\.tmp-[0-9a-f]{{32}}"  # the second form: older releases


def beside(path: Path) -> Path:
    """Return a new name in the folder of `path` for what shall become `path`."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


@contextmanager
def whole_file(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a name beside `path` for the block to write a file to; at its end that becomes `path`.

    Args:
        path: its folder is made, if missing.
        overwrite: False: of several writers the first wins.

    Raises:
        FileExistsError: `path` is there and may not be overwritten.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = beside(target)
    try:
        yield unfinished
        sync(unfinished)
        if overwrite:
            os.replace(unfinished, target)
        else:
            os.link(unfinished, target)
        sync(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(
    path: str | os.PathLike[str], existing: Literal["refuse", "replace", "fill"] = "refuse"
) -> Iterator[Path]:
    """Yield a new folder beside `path` for the block to fill; at its end that becomes `path`.

    Args:
        path: the folder that it stands in is made, if missing.
        existing: what becomes of a folder that is there and not empty. `replace` takes all of it away; `fill` gives it
            the new files, each of them whole, and leaves the others.

    Raises:
        UserError: `path` is there and is not to be replaced.
        OSError: the same, where it came into being meanwhile.
    """
    target = Path(path)
    if existing == "refuse":
        require_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = beside(target)
    unfinished.mkdir()
    try:
        yield unfinished
        sync_tree(unfinished)
        try:
            os.rename(unfinished, target)
        except OSError:
            if existing == "refuse" or not target.exists():
                raise
            (_exchange if existing == "replace" else _move_files)(unfinished, target)
        sync(target.parent)
    finally:
        _remove(unfinished)


def save_text(text: str, path: str | os.PathLike[str]) -> None:
    """Write a file of text, whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def save_json(content: Any, path: str | os.PathLike[str]) -> None:
    """Write a file of JSON, whole or not at all."""
    save_text(json.dumps(content, indent=2, ensure_ascii=False), path)


def move_folder(folder: Path, target: Path) -> None:
    """Give a folder another name on the same disk; OSError where `target` is there and not empty."""
    os.rename(folder, target)
    sync(target.parent)


def discard(folder: Path) -> None:
    """Remove a folder, so that a kill half-way leaves nothing of its name."""
    doomed = beside(folder)
    os.rename(folder, doomed)
    _remove(doomed)


def remove_unfinished(folder: Path, names: str) -> None:
    """Remove what killed runs left of files and folders whose names match the pattern `names`, and nothing else.

    Only for names that no other process writes at the same time.
    """
    if folder.is_dir():
        pattern = re.compile(_UNFINISHED.format(names=names))
        for path in folder.iterdir():
            if pattern.fullmatch(path.name) and not path.is_symlink():
                _remove(path)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sync_tree(folder: Path) -> None:
    """Flush a folder and all below it to the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what a folder holds before the folder
        if not path.is_symlink():
            sync(path)
    sync(folder)


def require_folder(name: object, what: str) -> None:
    """Refuse a local path that is not a directory, before it is taken for the name of a repository.

    Args:
        name: a path, or `owner/name` on the hub.
        what: what should be there, for the message.

    Raises:
        MissingFileError: `name` is a file, or can only be a path (absolute, relative with a dot, or of several parts)
            and is none.
    """
    text = os.fspath(name) if isinstance(name, (str, os.PathLike)) else ""
    if os.path.isfile(text):
        raise MissingFileError(f"'{text}' is a file, not a directory: {what} is a folder")
    is_path = os.path.isabs(text) or text.startswith((".", "~")) or text.count("/") > 1 or isinstance(name, os.PathLike)
    if is_path and not os.path.exists(text):
        raise MissingFileError(f"there is no folder '{text}', where {what} should be")


def require_free(folder: str | os.PathLike[str]) -> None:
    """Raise `UserError` if `folder` exists and is not an empty folder."""
    path = Path(folder)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"'{folder}' exists and is not empty: choose another folder, or remove it first")


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _move_files(source: Path, target: Path) -> None:
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, place)
        sync(place.parent)


def _exchange(one: Path, other: Path) -> None:
    """Swap the names of two folders: in one step on Linux, elsewhere through a third name."""
    if _exchange_at_once(one, other):
        return
    aside = beside(other)
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except BaseException:
        os.rename(aside, other)
        raise
    os.rename(aside, one)


def _exchange_at_once(one: Path, other: Path) -> bool:
    """Return whether the system's renameat2 could swap the names; some file systems can't."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0
