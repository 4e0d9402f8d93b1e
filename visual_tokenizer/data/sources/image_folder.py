"""A folder of picture files, with captions in an optional `metadata.jsonl`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import datasets

from visual_tokenizer.data.files import read_labels
from visual_tokenizer.data.sources._folders import FolderConfig, FolderSource
from visual_tokenizer.data.sources.base import DataSourceError

EXTENSIONS = frozenset(".png .jpg .jpeg .webp .gif .bmp .tif .tiff .ppm .pgm .avif .jp2 .tga .ico".split())


@dataclass(kw_only=True)
class ImageFolderConfig(FolderConfig):
    """Every picture below a folder."""

    label_column: str = "label"
    """Key of the picture's class in the metadata; without it, the name of the subfolder that the picture is in."""


class ImageFolder(FolderSource):
    """Pictures of a folder; `key` is the path within it. Adds the column `label`, empty for a file in no subfolder."""

    Config = ImageFolderConfig
    label_columns = ("label",)

    def read(self, part: str) -> datasets.Dataset:
        folder = self.folder_of(part)
        files = sorted(
            file.relative_to(folder).as_posix()
            for file in folder.rglob("*")
            if file.suffix.lower() in EXTENSIONS and file.is_file()
        )
        if not files:
            raise DataSourceError(
                f"image_folder: no picture below {folder} (looked for {' '.join(sorted(EXTENSIONS))})"
            )
        captions = self.captions_in(folder)
        labels = read_labels(folder / self.config.metadata_file, self.config.label_column)
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
