"""File patterns of recipes."""

from __future__ import annotations

import glob
from pathlib import Path

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
