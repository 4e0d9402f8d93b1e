"""Parquet files with pictures inside."""

from __future__ import annotations

from dataclasses import dataclass

import datasets

from visual_tokenizer.data.files import expand
from visual_tokenizer.data.sources._columns import to_rows
from visual_tokenizer.data.sources.base import Source, SourceConfig


@dataclass(kw_only=True)
class ParquetConfig(SourceConfig):
    """Parquet files whose pictures are bytes or `{"bytes", "path"}` structs."""

    files: str
    """Files as a path, a glob (`*`, `**`) or a brace pattern (`part-{000..099}.parquet`)."""
    heldout_files: str | None = None
    """Files of the held-out samples, same form; null: a share of `files`."""
    image_column: str = "image"
    """Column of the pictures."""
    caption_column: str | None = "caption"
    """Column of the captions: text or a list of texts (the first is taken); null: no captions."""
    key_column: str | None = None
    """Column that identifies a sample; null: its row number, or in a stream the hash of its picture."""
    label_column: str | None = None
    """Column of the pictures' classes: names or class labels; null: none."""
    streaming: bool = False
    """Read the files on the way instead of converting them to an Arrow cache first."""


class Parquet(Source):
    """Parquet files."""

    Config = ParquetConfig

    def __init__(self, config: ParquetConfig) -> None:
        super().__init__(config)
        self.label_columns = () if config.label_column is None else ("label",)

    @property
    def has_own_heldout(self) -> bool:
        return self.config.heldout_files is not None

    def read(self, part: str) -> datasets.Dataset | datasets.IterableDataset:
        pattern = self.config.files if part == "main" else self.config.heldout_files
        files = expand(pattern, where="parquet")
        table = datasets.load_dataset(
            "parquet", data_files={"rows": files}, split="rows", streaming=self.config.streaming
        )
        return to_rows(
            table,
            image_column=self.config.image_column,
            caption_column=self.config.caption_column,
            key_column=self.config.key_column,
            label_column=self.config.label_column,
            where=f"parquet {pattern}",
        )
