"""Documents of OBELICS: parallel lists `texts` and `images`, one None where the other has something.

Paper: OBELICS: An Open Web-Scale Filtered Dataset of Interleaved Image-Text Documents (Laurençon et al., 2023),
arXiv:2306.16527.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets

from mmlm.documents._content import file_in, interleaved
from mmlm.documents._tables import to_document_rows
from mmlm.documents.base import Document, DocumentSource, DocumentSourceConfig
from visual_tokenizer.data.files import expand


@dataclass(kw_only=True)
class ObelicsConfig(DocumentSourceConfig):
    """Parquet files. The published ones hold addresses in place of pictures: those count as missing."""

    files: str
    """Files as a path, a glob (`*`, `**`) or a brace pattern."""
    images_folder: str | None = None
    """Folder to which paths of pictures are relative; null: the current one. Unused where `images` holds bytes."""
    key_column: str | None = None
    """Column that identifies a document; null: its row number, or in a stream the hash of its text."""
    streaming: bool = False
    """Read the files on the way instead of converting them to an Arrow cache first."""


class Obelics(DocumentSource):
    """Parquet files of documents; pictures are bytes, `{"bytes", "path"}` or paths."""

    Config = ObelicsConfig

    def read(self) -> datasets.Dataset | datasets.IterableDataset:
        files = expand(self.config.files, where="obelics")
        table = datasets.load_dataset(
            "parquet", data_files={"rows": files}, split="rows", streaming=self.config.streaming
        )
        columns = {"key": self.config.key_column, "texts": "texts", "images": "images"}
        return to_document_rows(table, columns, where=f"obelics {self.config.files}")

    def document(self, row: Mapping[str, Any]) -> Document:
        folder = self.config.images_folder
        parts = interleaved(row["texts"], row["images"], lambda reference: file_in(folder, reference))
        return Document.of_parts(row["key"], parts)
