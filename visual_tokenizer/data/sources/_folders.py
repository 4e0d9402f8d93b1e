"""What the sources of files in a folder share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from visual_tokenizer.data.files import read_captions
from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig


@dataclass(kw_only=True)
class FolderConfig(SourceConfig):
    """Files below a folder, and their captions."""

    folder: str
    """Folder that is searched with all its subfolders."""
    heldout_folder: str | None = None
    """Folder of the held-out files; null: a share of `folder`."""
    metadata_file: str = "metadata.jsonl"
    """File in the folder, one JSON object a line with `file_name` and a caption; it may be missing."""
    caption_column: str | None = None
    """Key of the caption in the metadata; null: `caption`, else `text`, else an empty caption."""


class FolderSource(Source):
    """Files below a folder; `key` is the path within it."""

    parts_named_by = "folder"

    def folder_of(self, part: str) -> Path:
        """Return the folder of "main" or "heldout".

        Raises:
            DataSourceError: it is not there.
        """
        folder = Path(self.name_of(part))
        if not folder.is_dir():
            raise DataSourceError(f"{self.config.type}: there is no folder {folder}")
        return folder

    def captions_in(self, folder: Path) -> dict[str, str]:
        """Return the captions of the metadata by file name."""
        return read_captions(folder / self.config.metadata_file, self.config.caption_column, self.config.type)
