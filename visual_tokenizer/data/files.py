"""File patterns of recipes, and captions and classes beside files."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import braceexpand

from visual_tokenizer.data.sources.base import DataSourceError


def expand(pattern: str, where: str) -> list[str]:
    """Return the files of a path, glob or brace pattern, sorted within each brace alternative.

    Raises:
        DataSourceError: a file that is named is not there, or a glob matches none; `where` names the source.
    """
    files: list[str] = []
    for name in braceexpand.braceexpand(pattern):
        found = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
        files += [file for file in found if Path(file).is_file()]
        if not found or not Path(found[0]).is_file():
            raise DataSourceError(f"{where}: no file matches {name}")
    return list(dict.fromkeys(files))


def read_captions(file: Path, caption_column: str | None, where: str) -> dict[str, str]:
    """Return the caption by file name of a file of JSON lines, each with `file_name` and a caption.

    Args:
        file: it may be missing, if `caption_column` is None.
        caption_column: key of the caption; None: `caption`, else `text`, else an empty caption.
        where: names the source in an error.

    Raises:
        DataSourceError: the file or a key is missing, or a line is not such an object.
    """
    if not file.is_file():
        if caption_column is not None:
            raise DataSourceError(f"{where}: caption_column is '{caption_column}', but there is no {file}")
        return {}
    captions = {}
    for line, entry in _entries(file):
        if caption_column is not None and caption_column not in entry:
            raise DataSourceError(f"{line}: no key '{caption_column}' (caption_column); there are {', '.join(entry)}")
        caption = entry[caption_column] if caption_column is not None else entry.get("caption", entry.get("text"))
        captions[Path(entry["file_name"]).as_posix()] = "" if caption is None else str(caption)
    return captions


def read_labels(file: Path, label_column: str) -> dict[str, str]:
    """Return the class by file name of those lines of a file, which may be missing, that have the key `label_column`.

    Raises:
        DataSourceError: a line is not an object with `file_name`.
    """
    if not file.is_file():
        return {}
    return {
        Path(entry["file_name"]).as_posix(): str(entry[label_column])
        for _, entry in _entries(file)
        if entry.get(label_column) is not None
    }


def _entries(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a file of JSON lines, each with what names its line in an error."""
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                entry: Any = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataSourceError(f"{where}: not JSON: {error}") from error
            if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
                raise DataSourceError(f"{where}: an object with the key 'file_name' is needed, got {line.strip()[:80]}")
            yield where, entry
