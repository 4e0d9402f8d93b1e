"""One shard file and its manifest: each is there as a whole or not at all.

The manifest `pictures-UUUUU.json`, which holds the SHA-256 of `pictures-UUUUU.arrow`, is written after it. A shard
counts as done if both are there and agree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from mmlm.data.shards import ShardHeader
from visual_tokenizer.runs.files import file_sha256, save_json, whole_file


@dataclass
class ShardManifest:
    """What a finished shard file holds."""

    file: str
    """Name within the folder."""
    sha256: str
    """Of the file, in hexadecimal."""
    size: int
    """Bytes of the file."""
    count: int
    """Pictures in the file."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Unreadable pictures of its part of the source: reason by key."""
    changed: dict[str, int] = field(default_factory=dict)
    """How often something of an item was cut or left out, by what."""


def shard_name(unit: int) -> str:
    """Return the name, without suffix, of the files of a unit of work."""
    return f"pictures-{unit:05d}"


def read_manifest(folder: Path, unit: int) -> ShardManifest | None:
    """Return the manifest of a unit; None if it is not there or is damaged."""
    try:
        fields = json.loads((folder / f"{shard_name(unit)}.json").read_text(encoding="utf-8"))
        return ShardManifest(**fields)
    except (OSError, ValueError, TypeError):
        return None


def is_whole(folder: Path, unit: int) -> bool:
    """Return whether a unit's file is there and has the content that its manifest names."""
    manifest = read_manifest(folder, unit)
    if manifest is None:
        return False
    path = folder / manifest.file
    return path.is_file() and path.stat().st_size == manifest.size and file_sha256(path) == manifest.sha256


class _HashedFile:
    """A file to write to that knows the SHA-256 of what was meant to be written, whatever the disk made of it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        content = bytes(data)
        self.digest.update(content)
        self.size += len(content)
        return self.file.write(content)

    def flush(self) -> None:
        self.file.flush()


class ShardWriter:
    """Writes the rows of one unit of work as an Arrow stream."""

    def __init__(self, folder: Path, header: ShardHeader, unit: int) -> None:
        self.path = folder / f"{shard_name(unit)}.arrow"
        self.features = header.features()
        self._open = ExitStack()
        unfinished = self._open.enter_context(whole_file(self.path))
        self._hashed = _HashedFile(self._open.enter_context(open(unfinished, "wb")))
        self._stream = pa.ipc.new_stream(self._hashed, self.features.arrow_schema)
        self.count = 0
        self.skipped: dict[str, str] = {}
        self.changed: dict[str, int] = {}

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows, which have the header's columns or more."""
        if rows:
            columns = {name: [row[name] for row in rows] for name in self.features}
            self._stream.write_batch(pa.RecordBatch.from_pydict(columns, schema=self.features.arrow_schema))
            self.count += len(rows)

    def skip(self, reasons: Mapping[str, str]) -> None:
        """Note unreadable pictures: reason by key."""
        self.skipped.update(reasons)

    def note(self, changes: Mapping[str, int]) -> None:
        """Count what was cut or left out of items."""
        for what, count in changes.items():
            self.changed[what] = self.changed.get(what, 0) + count

    def close(self) -> ShardManifest:
        """Flush the file to the disk, give it its name, and write its manifest."""
        self._stream.close()
        self._open.close()
        manifest = ShardManifest(
            self.path.name, self._hashed.digest.hexdigest(), self._hashed.size, self.count, self.skipped, self.changed
        )
        save_json(asdict(manifest), self.path.with_suffix(".json"))
        return manifest
