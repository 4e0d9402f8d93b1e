"""Text without pictures, to keep or to teach the ability to write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import datasets
from annotated_types import Len

from mmlm.documents._lines import FEATURES, index_lines, index_of, key_of, read_entry, read_stretch
from mmlm.documents.base import BrokenDocumentError, Document, DocumentSource, DocumentSourceConfig
from visual_tokenizer.data.files import expand
from visual_tokenizer.data.sources.base import DataSourceError

JSON_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(kw_only=True)
class TextConfig(DocumentSourceConfig):
    """Files of plain text in UTF-8, or of JSON lines."""

    files: str
    """Files as a path, a glob (`*`, `**`) or a brace pattern; .jsonl and .ndjson hold one object a line."""
    text_key: str = "text"
    """Key of the text in JSON lines."""
    separator: Annotated[str, Len(1)] | None = None
    """Text between two documents of a plain file, for example a blank line, "\\n\\n"; null: a file is a document."""


class Text(DocumentSource):
    """Documents of one text each."""

    Config = TextConfig

    def read(self) -> datasets.Dataset:
        files = expand(self.config.files, where="text")
        plain = [file for file in files if Path(file).suffix.lower() not in JSON_SUFFIXES]
        lines = [file for file in files if file not in plain]
        indexes = [index_of(self._stretches(plain), FEATURES), index_lines(lines, lambda entry, _: self._text(entry))]
        return datasets.concatenate_datasets([index for index in indexes if len(index)] or indexes[:1])

    def document(self, row: Mapping[str, Any]) -> Document:
        if Path(row["file"]).suffix.lower() in JSON_SUFFIXES:
            text = self._text(read_entry(row))
        else:
            text = read_stretch(row).decode("utf-8", errors="replace")
        return Document.of_parts(row["key"], [text] if text.strip() else [])

    def _text(self, entry: Any) -> str:
        text = entry.get(self.config.text_key) if isinstance(entry, Mapping) else None
        if not isinstance(text, str):
            raise BrokenDocumentError(f"a text under the key '{self.config.text_key}' (text_key) is needed")
        return text

    def _stretches(self, files: list[str]) -> Iterator[tuple[Any, ...]]:
        separator = None if self.config.separator is None else self.config.separator.encode()
        for file in files:
            content = Path(file).read_bytes()
            try:
                content.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataSourceError(f"{file}: not UTF-8: {error}") from error
            start = 0
            for number, stretch in enumerate(content.split(separator) if separator else [content], start=1):
                if stretch.strip():
                    yield key_of(file, number), file, start, len(stretch)
                start += len(stretch) + len(separator or b"")
