"""File patterns of recipes, and captions beside files."""

from __future__ import annotations

import glob
import json
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
    with open(file, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                name, caption = _caption_entry(line, caption_column, f"{file}, line {number}")
                captions[name] = caption
    return captions


def _caption_entry(line: str, column: str | None, where: str) -> tuple[str, str]:
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataSourceError(f"{where}: not JSON: {error}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise DataSourceError(f"{where}: an object with the key 'file_name' is needed, got {line.strip()[:80]}")
    if column is not None and column not in entry:
        raise DataSourceError(f"{where}: no key '{column}' (caption_column); there are {', '.join(entry)}")
    caption = entry[column] if column is not None else entry.get("caption", entry.get("text"))
    return Path(entry["file_name"]).as_posix(), "" if caption is None else str(caption)
