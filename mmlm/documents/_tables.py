"""Columns of any `datasets` table as those that documents are made of: `key`, `texts`, `images`, `messages`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import datasets

from visual_tokenizer.data.sources.base import DataSourceError

FIELDS = ("texts", "images", "messages")


def to_document_rows(
    table: datasets.Dataset | datasets.IterableDataset, columns: Mapping[str, str | None], where: str
) -> Any:
    """Return `table` with the columns that `columns` names, renamed, pictures encoded.

    Without a key column a map-style row's key is its number, a streamed row's the hash of its text.

    Args:
        table: map-style or streamed.
        columns: for `key`, `texts`, `images` and `messages` the column of the table, or None.
        where: names the source in an error.

    Raises:
        DataSourceError: a column is missing.
    """
    names = table.column_names
    wanted = {field: column for field, column in columns.items() if column is not None}
    for field, column in wanted.items():
        if names is not None and column not in names:
            raise DataSourceError(f"{where}: {field}_column is '{column}', but the columns are {', '.join(names)}")
    if (images := wanted.get("images")) is not None:
        encoded = _encoded((table.features or {}).get(images))
        table = table if encoded is None else table.cast_column(images, encoded)
    if isinstance(table, datasets.IterableDataset):
        return table.map(_stream_row, fn_kwargs={"columns": wanted}, remove_columns=names)
    named = table[wanted["key"]] if "key" in wanted else (f"{row:09d}" for row in range(len(table)))
    keys = [str(key) for key in named]
    content = {wanted[field]: field for field in FIELDS if field in wanted}
    renamed = table.select_columns(list(content)).rename_columns(content)
    return datasets.concatenate_datasets([renamed, datasets.Dataset.from_dict({"key": keys})], axis=1)


def _encoded(feature: Any) -> Any:
    """Return the feature that leaves pictures encoded; None where they are no `Image`s."""
    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    if isinstance(getattr(feature, "feature", None), datasets.Image):
        return datasets.List(datasets.Image(decode=False))
    return None


def _stream_row(row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    found = {field: row[columns[field]] for field in FIELDS if field in columns}
    if "key" in columns:
        return {"key": str(row[columns["key"]]), **found}
    text = json.dumps({field: value for field, value in found.items() if field != "images"}, default=str)
    return {"key": hashlib.sha256(text.encode()).hexdigest()[:16], **found}
