"""Bring the columns of any `datasets` table to the ones that a source reads."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig


@dataclass(kw_only=True)
class ColumnsConfig(SourceConfig):
    """Which columns of a table are read, and how."""

    image_column: str = "image"
    """Column of the pictures."""
    caption_column: str | None = "caption"
    """Column of the captions: text, a list of texts (the first counts) or a class label; null: none."""
    key_column: str | None = None
    """Column that identifies a sample; null: its row number, or in a stream the hash of its picture."""
    label_column: str | None = None
    """Column of the pictures' classes: names or class labels; null: none."""
    streaming: bool = False
    """Read on the way instead of storing the whole set (as an Arrow cache) first."""


class TableSource(Source):
    """Rows of tables, which say to which class a picture belongs where `label_column` does."""

    def __init__(self, config: ColumnsConfig) -> None:
        super().__init__(config)
        self.label_columns = () if config.label_column is None else ("label",)


def to_rows(table: datasets.Dataset | datasets.IterableDataset, config: ColumnsConfig, *, where: str) -> Any:
    """Return `table` with the columns `image` (encoded), `caption`, `key` and, where `label_column` names it, `label`.

    Without a key column a map-style row's key is its number, a streamed row's the hash of its picture.

    Raises:
        DataSourceError: a column is missing; `where` names the source.
    """
    names = table.column_names
    columns = {name: getattr(config, f"{name}_column") for name in ("image", "caption", "key", "label")}
    for name, column in columns.items():
        if column is not None and names is not None and column not in names:
            raise DataSourceError(f"{where}: {name}_column is '{column}', but the columns are {', '.join(names)}")
    image_column, caption_column, key_column, label_column = columns.values()
    streaming = isinstance(table, datasets.IterableDataset)
    table = table.cast_column(image_column, datasets.Image(decode=False))
    names_of_caption = _class_names(table, caption_column)
    names_of_label = _class_names(table, label_column)
    if streaming:
        settings = {**columns, "names_of_caption": names_of_caption, "names_of_label": names_of_label}
        return table.map(_stream_row, fn_kwargs=settings, remove_columns=names)
    count = len(table)
    captions: Any = [""] * count if caption_column is None else table[caption_column][:]
    if names_of_caption is not None:
        captions = [_class_name(names_of_caption, value) for value in captions]
    keys = [f"{row:09d}" for row in range(count)] if key_column is None else [str(k) for k in table[key_column][:]]
    labels = {}
    if label_column is not None:
        labels["label"] = [_class_name(names_of_label, value) for value in table[label_column][:]]
    images = table.select_columns([image_column])
    if image_column != "image":
        images = images.rename_column(image_column, "image")
    texts = datasets.Dataset.from_dict({"caption": captions, "key": keys, **labels})
    return datasets.concatenate_datasets([images, texts], axis=1)


def _class_names(table: Any, column: str | None) -> datasets.ClassLabel | None:
    """Return the names of a column's numbers, if it is one of numbers that have names."""
    feature = None if column is None else (table.features or {}).get(column)
    return feature if isinstance(feature, datasets.ClassLabel) else None


def _class_name(names: datasets.ClassLabel | None, value: Any) -> str:
    if names is None:
        return "" if value is None else str(value)
    return "" if value is None or value < 0 else names.int2str(value)


def _stream_row(
    row: dict[str, Any],
    image: str,
    caption: str | None,
    key: str | None,
    label: str | None,
    names_of_caption: datasets.ClassLabel | None,
    names_of_label: datasets.ClassLabel | None,
) -> dict[str, Any]:
    text: Any = "" if caption is None else row[caption]
    encoded = row[image] or {"bytes": b"", "path": None}
    return {
        "image": encoded,
        "caption": text if names_of_caption is None else _class_name(names_of_caption, text),
        "key": _content_key(encoded) if key is None else str(row[key]),
        **({} if label is None else {"label": _class_name(names_of_label, row[label])}),
    }


def _content_key(encoded: dict[str, Any]) -> str:
    content = encoded["bytes"]
    if content is None:
        path = encoded["path"]
        content = Path(path).read_bytes() if path and Path(path).is_file() else str(path).encode()
    return hashlib.sha256(content).hexdigest()[:16]
