"""Documents in tar files: `name.json` says what stands where, `name.0.jpg`, `name.1.png`, … are its pictures."""

from __future__ import annotations

import itertools
import json
import logging
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from mmlm.documents._content import turns_of
from mmlm.documents._lines import index_of
from mmlm.documents.base import BrokenDocumentError, Document, DocumentSource, DocumentSourceConfig, Picture
from visual_tokenizer.data.files import expand
from visual_tokenizer.data.sources.base import DataSourceError

logger = logging.getLogger(__name__)

JSON = "json"
FEATURES = datasets.Features(
    {
        "key": datasets.Value("string"),
        "file": datasets.Value("string"),
        "members": datasets.List(datasets.Value("string")),
        "starts": datasets.List(datasets.Value("int64")),
        "sizes": datasets.List(datasets.Value("int64")),
    }
)


@dataclass(kw_only=True)
class WebDatasetDocumentsConfig(DocumentSourceConfig):
    """Tar files without compression, which can be read at any place."""

    shards: str
    """Local files as a path, a glob (`*`, `**`) or braces (`docs-{0000..0099}.tar`)."""


class WebDatasetDocuments(DocumentSource):
    """Tar files of documents.

    The JSON is that of `chat_jsonl`, in which pictures are numbers, or names without the document's own: 0 and "0.jpg"
    are the member `name.0.jpg`. A text with `<image>` needs no list: the marks stand for 0, 1, … Only headers are read
    beforehand. A damaged tail ends its file with a line in the log.
    """

    Config = WebDatasetDocumentsConfig

    def read(self) -> datasets.Dataset:
        files = expand(self.config.shards, where="webdataset_documents")
        return index_of((row for file in files for row in _documents(file)), FEATURES)

    def document(self, row: Mapping[str, Any]) -> Document:
        places = dict(zip(row["members"], zip(row["starts"], row["sizes"], strict=True), strict=True))
        with open(row["file"], "rb") as file:

            def content(name: str) -> bytes:
                start, size = places[name]
                file.seek(start)
                return file.read(size)

            def picture(reference: Any) -> Picture:
                wanted = str(reference)
                found = [name for name in places if name == wanted or name.partition(".")[0] == wanted]
                return Picture(content(found[0]) if found else None)

            if JSON not in places:
                raise BrokenDocumentError("there is no .json member")
            try:
                entry = json.loads(content(JSON))
            except ValueError as error:
                raise BrokenDocumentError(f"the .json member is not JSON: {error}") from error
            if isinstance(entry, Mapping) and "texts" not in entry:
                entry = {"images": sorted(set(places) - {JSON}, key=_number), **entry}
            return Document(row["key"], turns_of(entry, picture))


def _number(name: str) -> tuple[int, str]:
    digits = name.partition(".")[0]
    return (int(digits), name) if digits.isdecimal() else (1 << 62, name)


def _documents(file: str) -> Iterator[tuple[Any, ...]]:
    """Yield the index of each document of a tar file: neighbouring members of one name."""
    for key, members in itertools.groupby(_members(file), key=lambda member: member[0]):
        _, extensions, starts, sizes = zip(*members, strict=True)
        yield key, file, list(extensions), list(starts), list(sizes)


def _members(file: str) -> Iterator[tuple[str, str, int, int]]:
    """Yield key, extension, first byte and size of the plain files that are wholly there."""
    length = Path(file).stat().st_size
    try:
        with tarfile.open(file, mode="r:") as tar:
            for member in tar:
                if member.offset_data + member.size > length:
                    logger.warning("%s: cut off within member %s, which is left out", file, member.name)
                    return
                if member.isreg():
                    folder, slash, base = member.name.rpartition("/")
                    stem, _, extension = base.partition(".")
                    yield folder + slash + stem, extension.lower(), member.offset_data, member.size
    except (tarfile.TarError, EOFError, OSError) as error:
        if Path(file).suffix != ".tar":
            raise DataSourceError(f"webdataset_documents: {file} must be a tar file without compression") from error
        logger.warning("%s: the rest of the file is unreadable: %s", file, error)
