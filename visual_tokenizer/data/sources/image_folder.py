"""A folder of picture files, with captions in an optional `metadata.jsonl`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import datasets

from visual_tokenizer.data.files import read_captions, read_labels
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
    label_column: str = "label"
    """Key of the picture's class in the metadata; without it, the name of the subfolder that the picture is in."""


class ImageFolder(Source):
    """Pictures of a folder; `key` is the path within it. Adds the column `label`, empty for a file in no subfolder."""

    Config = ImageFolderConfig
    label_columns = ("label",)

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
        metadata = folder / self.config.metadata_file
        captions = read_captions(metadata, self.config.caption_column, "image_folder")
        labels = read_labels(metadata, self.config.label_column)
        features = datasets.Features(
            {
                "key": datasets.Value("string"),
                "image": datasets.Image(decode=False),
                "caption": datasets.Value("string"),
                "label": datasets.Value("string"),
            }
        )
        columns = {
            "key": files,
            "image": [{"bytes": None, "path": str(folder / file)} for file in files],
            "caption": [captions.get(file, "") for file in files],
            "label": [labels.get(file, Path(file).parent.name) for file in files],
        }
        return datasets.Dataset.from_dict(columns, features=features)
