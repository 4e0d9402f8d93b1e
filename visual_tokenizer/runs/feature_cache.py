"""Features of a frozen network on disk, so that it looks at each picture once and not once an epoch.

A folder belongs to one network and one set of pictures: `cache.json` says which, and another is refused. Each kind of
feature is one file of rows, a row for each picture as it is and one for each mirrored, and one file of checksums. Both
are mapped into memory. Any number of processes may read and write at once: a row counts only if its checksum is right,
so one that is half written, or was when a run broke off, is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visual_tokenizer.fields.decoding import ConfigError
from visual_tokenizer.runs.files import whole_file

FORMAT = 1
VARIANTS = 2
"""Rows of a picture: as it is, and mirrored."""


def keys_digest(keys: Iterable[str]) -> str:
    """Return 16 hexadecimal digits that tell a sequence of picture keys from others."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(f"{len(key)}:{key}".encode())
    return digest.hexdigest()[:16]


class FeatureCache:
    """The features of the pictures 0 … `pictures` − 1, each as it is and mirrored.

    Args:
        folder: made, if it is not there.
        identity: what the features depend on, in plain JSON types.
        pictures: how many there are; 1 or more.

    Raises:
        ConfigError: the folder holds the features of another identity; the entries that differ are named.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any], pictures: int) -> None:
        self.folder = Path(folder)
        self.rows = VARIANTS * pictures
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = json.loads(json.dumps({"format": FORMAT, **identity, "pictures": pictures}))
        self._create("cache.json", json.dumps(wanted, indent=1).encode())
        found = json.loads((self.folder / "cache.json").read_text(encoding="utf-8"))
        different = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        if different:
            listed = "; ".join(f"{key}: {found.get(key)!r} there, {wanted.get(key)!r} now" for key in different)
            raise ConfigError(
                f"teacher.cache_dir must be a folder of this teacher and these pictures, but {self.folder} was written "
                f"for others: {listed}. Name another folder, or delete this one."
            )
        self._tables: dict[str, _Table] = {}

    def read(self, kind: str, pictures: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return features (B, …) and which of them are there, (B,) bool; None where none of the kind ever was.

        Args:
            kind: name of the kind of feature, fit for a file name.
            pictures: (B,) int64 on the CPU.
            mirrored: (B,) bool on the CPU.
        """
        if kind not in self._tables:
            shape = self.folder / f"{kind}.json"
            if not shape.is_file():
                return None
            self._tables[kind] = _Table(self.folder / kind, self.rows, **json.loads(shape.read_text(encoding="utf-8")))
        return self._tables[kind].read(self._places(pictures, mirrored))

    def write(self, kind: str, pictures: Tensor, mirrored: Tensor, features: Tensor) -> None:
        """Keep features (B, …) on the CPU; the first of a kind settle the shape and dtype of all.

        Raises:
            ConfigError: features of another shape or dtype than the kind has.
        """
        fields = {"shape": list(features.shape[1:]), "dtype": str(features.dtype).removeprefix("torch.")}
        if kind not in self._tables:
            length = math.prod(features.shape[1:]) * features.element_size()
            self._create(f"{kind}.features", self.rows * length)
            self._create(f"{kind}.checks", self.rows * 4)
            self._create(f"{kind}.json", json.dumps(fields).encode())
            found = json.loads((self.folder / f"{kind}.json").read_text(encoding="utf-8"))
            self._tables[kind] = _Table(self.folder / kind, self.rows, **found)
        table = self._tables[kind]
        if [list(table.shape), str(table.dtype)] != [fields["shape"], str(features.dtype)]:
            raise ConfigError(
                f"teacher.cache_dir: {self.folder} holds '{kind}' of {table.shape} {table.dtype}, "
                f"got {tuple(features.shape[1:])} {features.dtype}"
            )
        table.write(self._places(pictures, mirrored), features)

    def _places(self, pictures: Tensor, mirrored: Tensor) -> np.ndarray[Any, Any]:
        return (VARIANTS * pictures + mirrored.long()).numpy()

    def _create(self, name: str, content: bytes | int) -> None:
        """Make a file of `content`, or of so many zeros, unless there is one; it appears whole or not at all."""
        if (self.folder / name).exists():
            return
        with contextlib.suppress(FileExistsError):  # another process was first
            with whole_file(self.folder / name, overwrite=False) as unfinished, unfinished.open("wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    file.truncate(content)


class _Table:
    """The rows of one kind of feature and their checksums; 0 stands for a row that nobody wrote."""

    def __init__(self, path: Path, rows: int, shape: Sequence[int], dtype: str) -> None:
        self.shape, self.dtype = tuple(shape), getattr(torch, dtype)
        length = math.prod(shape) * torch.empty((), dtype=self.dtype).element_size()
        self.values = np.memmap(f"{path}.features", dtype=np.uint8, mode="r+", shape=(rows, length))
        self.checks = np.memmap(f"{path}.checks", dtype=np.uint32, mode="r+", shape=(rows,))

    def read(self, places: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
        values, checks = np.array(self.values[places]), np.array(self.checks[places])
        found = [bool(check) and _check(row) == int(check) for row, check in zip(values, checks, strict=True)]
        features = torch.from_numpy(values).view(self.dtype).view(len(values), *self.shape)
        return features, torch.tensor(found, dtype=torch.bool)

    def write(self, places: np.ndarray[Any, Any], features: Tensor) -> None:
        values = features.contiguous().flatten(1).view(torch.uint8).numpy()
        for place, row in zip(places, values, strict=True):
            self.values[place] = row
            self.checks[place] = _check(row)


def _check(row: np.ndarray[Any, Any]) -> int:
    return zlib.crc32(row.tobytes()) or 1
