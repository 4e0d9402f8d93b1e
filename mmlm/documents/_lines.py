"""Files of JSON lines by the place of each line: nothing but keys and places stays in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

    def rows() -> Iterator[tuple[Any, ...]]:
        for file in files:
            start = 0
            with open(file, "rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if line.strip():
                        try:
                            entry = json.loads(line)
                        except ValueError as error:  # not UTF-8, or not JSON
                            raise DataSourceError(f"{file}, line {number}: not JSON: {error}") from error
                        try:
                            check(entry, file)
                        except BrokenDocumentError as error:
                            raise DataSourceError(f"{file}, line {number}: {error}") from error
                        named = entry.get(KEY) if isinstance(entry, Mapping) else None
                        yield key_of(file, number) if named is None else str(named), file, start, len(line)
                    start += len(line)

    return index_of(rows(), FEATURES)


def key_of(file: str, number: int) -> str:
    """Return the key of the part of a file with this number, from 1."""
    return f"{Path(file).name}-{number:08d}"


def index_of(rows: Iterable[Sequence[Any]], features: datasets.Features) -> datasets.Dataset:
    """Return rows, whose values stand in the order of `features`, as a set."""
    columns: dict[str, list[Any]] = {name: [] for name in features}
    for row in rows:
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return datasets.Dataset.from_dict(columns, features=features)


def read_stretch(row: Mapping[str, Any]) -> bytes:
    """Return the bytes that a row of an index stands for."""
    with open(row["file"], "rb") as file:
        file.seek(row["start"])
        return file.read(row["size"])


def read_entry(row: Mapping[str, Any]) -> Any:
    """Return the object of a row of `index_lines`; BrokenDocumentError where the file changed since."""
    try:
        return json.loads(read_stretch(row))
    except ValueError as error:
        raise BrokenDocumentError(f"{row['file']} has changed: {error}") from error
