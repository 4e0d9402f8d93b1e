"""Documents of a Hugging Face data set: saved on disk, a folder of data files, or a name on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from mmlm.documents._content import chat, file_in, interleaved, marked
from mmlm.documents._tables import to_document_rows
from mmlm.documents.base import Document, DocumentSource, DocumentSourceConfig
from visual_tokenizer.data.sources.base import DataSourceError
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class HFDocumentsConfig(DocumentSourceConfig):
    """What `datasets.load_dataset` or `datasets.load_from_disk` reads."""

    path: str
    """Folder written by `save_to_disk`, folder of data files, or name of a data set on the hub."""
    name: str | None = None
    """Configuration of a data set that has several."""
    split: str = "train"
    """Split that is read, and from which documents are held out; may be a slice, `train[:10%]`."""
    texts_column: str | None = None
    """Column of a text, with `<image>` for each picture, or of a list beside that of the pictures; give this or
    messages_column."""
    messages_column: str | None = None
    """Column of a chat, a list of messages with role and content; give this or texts_column."""
    images_column: str | None = None
    """Column of one picture or a list of them; null: none but those that messages name."""
    images_folder: str | None = None
    """Folder to which paths of pictures are relative; null: the current one."""
    key_column: str | None = None
    """Column that identifies a document; null: its row number, or in a stream the hash of its text."""
    streaming: bool = False
    """Read on the way instead of storing the whole set first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.texts_column is None) == (self.messages_column is None):
            raise UserError(
                "either texts_column or messages_column must be given, got "
                f"{self.texts_column!r} and {self.messages_column!r}"
            )


class HFDocuments(DocumentSource):
    """A data set of the `datasets` library."""

    Config = HFDocumentsConfig

    def read(self) -> datasets.Dataset | datasets.IterableDataset:
        config = self.config
        columns = {
            "key": config.key_column,
            "texts": config.texts_column,
            "images": config.images_column,
            "messages": config.messages_column,
        }
        return to_document_rows(self._table(), columns, where=f"hf_documents {config.path}, split {config.split}")

    def _table(self) -> Any:
        config, folder = self.config, Path(self.config.path)
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(str(folder))
            if isinstance(saved, datasets.DatasetDict):
                if config.split not in saved:
                    known = ", ".join(saved)
                    raise DataSourceError(f"hf_documents {folder}: no split '{config.split}'; there are {known}")
                saved = saved[config.split]
            return saved.to_iterable_dataset() if config.streaming else saved
        return datasets.load_dataset(config.path, config.name, split=config.split, streaming=config.streaming)

    def document(self, row: Mapping[str, Any]) -> Document:
        folder = self.config.images_folder
        images = row.get("images")
        if images is not None and not isinstance(images, list):
            images = [images]
        if self.config.messages_column is not None:
            return Document(row["key"], chat(row["messages"], images, lambda one: file_in(folder, one)))
        read = interleaved if isinstance(row["texts"], list) else marked
        return Document.of_parts(row["key"], read(row["texts"], images, lambda one: file_in(folder, one)))
