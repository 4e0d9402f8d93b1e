"""A folder of picture files, with captions in an optional `metadata.jsonl`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig

EXTENSIONS = frozenset(".png .jpg .jpeg .webp .gif .bmp .tif .tiff .ppm .pgm .avif .jp2 .tga .ico".split())


@dataclass(kw_only=True)
class ImageFolderConfig(SourceConfig):
    """Every picture below a folder."""

    folder: str
    """Folder that is searched with all its subfolders."""
    heldout_folder: str | None = None
    """Folder of the held-out pictures; null: a share of `folder`."""
    metadata_file: str = "metadata.jsonl"
    """File in the folder, one JSON object a line with `file_name` and a caption; it may be missing."""
    caption_column: str | None = None
    """Key of the caption in the metadata; null: `caption`, else `text`, else an empty caption."""


class ImageFolder(Source):
    """Pictures of a folder; `key` is the path within it."""

    Config = ImageFolderConfig

    @property
    def has_own_heldout(self) -> bool:
        return self.config.heldout_folder is not None

    def read(self, part: str) -> datasets.Dataset:
        folder = Path(self.config.folder if part == "main" else self.config.heldout_folder)
        if not folder.is_dir():
            raise DataSourceError(f"image_folder: there is no folder {folder}")
        files = sorted(
            file.relative_to(folder).as_posix()
            for file in folder.rglob("*")
            if file.suffix.lower() in EXTENSIONS and file.is_file()
        )
        if not files:
            raise DataSourceError(
                f"image_folder: no picture below {folder} (looked for {' '.join(sorted(EXTENSIONS))})"
            )
        captions = self._captions(folder / self.config.metadata_file)
        features = datasets.Features(
            {
                "key": datasets.Value("string"),
                "image": datasets.Image(decode=False),
                "caption": datasets.Value("string"),
            }
        )
        columns = {
            "key": files,
            "image": [{"bytes": None, "path": str(folder / file)} for file in files],
            "caption": [captions.get(file, "") for file in files],
        }
        return datasets.Dataset.from_dict(columns, features=features)

    def _captions(self, file: Path) -> dict[str, str]:
        if not file.is_file():
            if self.config.caption_column is not None:
                raise DataSourceError(
                    f"image_folder: caption_column is '{self.config.caption_column}', but there is no {file}"
                )
            return {}
        captions = {}
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    name, caption = self._entry(line, f"{file}, line {number}")
                    captions[name] = caption
        return captions

    def _entry(self, line: str, where: str) -> tuple[str, str]:
        try:
            entry: Any = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataSourceError(f"{where}: not JSON: {error}") from error
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            raise DataSourceError(f"{where}: an object with the key 'file_name' is needed, got {line.strip()[:80]}")
        column = self.config.caption_column
        if column is not None and column not in entry:
            raise DataSourceError(f"{where}: no key '{column}' (caption_column); there are {', '.join(entry)}")
        caption = entry[column] if column is not None else entry.get("caption", entry.get("text"))
        return Path(entry["file_name"]).as_posix(), "" if caption is None else str(caption)
