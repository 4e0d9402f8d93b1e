"""Parquet files with pictures inside."""

from __future__ import annotations

from dataclasses import dataclass

import datasets

from visual_tokenizer.data.files import expand
from visual_tokenizer.data.sources._columns import ColumnsConfig, TableSource, to_rows


@dataclass(kw_only=True)
class ParquetConfig(ColumnsConfig):
    """Parquet files whose pictures are bytes or `{"bytes", "path"}` structs."""

    files: str
    """Files as a path, a glob (`*`, `**`) or a brace pattern (`part-{000..099}.parquet`)."""
    heldout_files: str | None = None
    """Files of the held-out samples, same form; null: a share of `files`."""


class Parquet(TableSource):
    """Parquet files."""

    Config = ParquetConfig
    parts_named_by = "files"

    def read(self, part: str) -> datasets.Dataset | datasets.IterableDataset:
        pattern = self.name_of(part)
        files = expand(pattern, where="parquet")
        table = datasets.load_dataset(
            "parquet", data_files={"rows": files}, split="rows", streaming=self.config.streaming
        )
        return to_rows(table, self.config, where=f"parquet {pattern}")
