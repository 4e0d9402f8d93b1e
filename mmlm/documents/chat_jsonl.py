"""Chats, or texts with pictures, as JSON lines; pictures are files beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from mmlm.documents._content import file_in, turns_of
from mmlm.documents._lines import index_lines, read_entry
from mmlm.documents.base import Document, DocumentSource, DocumentSourceConfig, Turn
from visual_tokenizer.data.files import expand


@dataclass(kw_only=True)
class ChatJsonlConfig(DocumentSourceConfig):
    """One object a line, with `messages`, with `texts` and `images`, or with `text` and `images`."""

    files: str
    """Files as a path, a glob (`*`, `**`) or a brace pattern; paths of pictures are relative to their file."""


class ChatJsonl(DocumentSource):
    """Chats: `{"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, …]}, …]}`.

    A line without messages is a plain document: `{"text": "a <image> b", "images": ["a.png"]}`. `key` is its `id`.
    """

    Config = ChatJsonlConfig

    def read(self) -> datasets.Dataset:
        return index_lines(expand(self.config.files, where="chat_jsonl"), _turns)

    def document(self, row: Mapping[str, Any]) -> Document:
        return Document(row["key"], _turns(read_entry(row), row["file"]))


def _turns(entry: Any, file: str) -> tuple[Turn, ...]:
    folder = str(Path(file).parent)
    return turns_of(entry, lambda reference: file_in(folder, reference))
