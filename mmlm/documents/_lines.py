"""Files of JSON lines by the place of each line: nothing but keys and places stays in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets

from mmlm.documents.base import BrokenDocumentError
from visual_tokenizer.data.sources.base import DataSourceError

FEATURES = datasets.Features(
    {
        "key": datasets.Value("string"),
        "file": datasets.Value("string"),
        "start": datasets.Value("int64"),
        "size": datasets.Value("int64"),
    }
)
KEY = "id"


def index_lines(files: Sequence[str], check: Callable[[Any, str], Any]) -> datasets.Dataset:
    """Return a row of `key`, `file`, `start` and `size` (bytes) for each line that is not blank.

    The key is the object's `id`, or the file's name and the line's number.

    Args:
        files: of JSON lines.
        check: called with each object and its file; raises `BrokenDocumentError` where it is not a document.

    Raises:
        DataSourceError: a line is not JSON or not a document; file and line are named.
    """
    columns: dict[str, list[Any]] = {name: [] for name in FEATURES}
    for file in files:
        start = 0
        with open(file, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    entry = _parse(line, f"{file}, line {number}")
                    try:
                        check(entry, file)
                    except BrokenDocumentError as error:
                        raise DataSourceError(f"{file}, line {number}: {error}") from error
                    named = entry.get(KEY) if isinstance(entry, Mapping) else None
                    key = f"{Path(file).name}-{number:08d}" if named is None else str(named)
                    for name, value in zip(FEATURES, (key, file, start, len(line)), strict=True):
                        columns[name].append(value)
                start += len(line)
    return datasets.Dataset.from_dict(columns, features=FEATURES)


def _parse(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:  # not UTF-8, or not JSON
        raise DataSourceError(f"{where}: not JSON: {error}") from error


def read_stretch(row: Mapping[str, Any]) -> bytes:
    """Return the bytes that a row of an index stands for."""
    with open(row["file"], "rb") as file:
        file.seek(row["start"])
        return file.read(row["size"])


def read_entry(row: Mapping[str, Any]) -> Any:
    """Return the object of a row of `index_lines`.

    Raises:
        BrokenDocumentError: the file changed since.
    """
    try:
        return json.loads(read_stretch(row))
    except ValueError as error:
        raise BrokenDocumentError(f"{row['file']} has changed: {error}") from error
