"""WebDataset shards: tar files in which `name.jpg` and `name.txt` or `name.json` belong together."""

from __future__ import annotations

import json
import logging
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets

from visual_tokenizer.data.files import expand
from visual_tokenizer.data.sources.base import Source, SourceConfig

logger = logging.getLogger(__name__)

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
LARGEST_TEXT = 1 << 20
BYTES_PER_PIXEL = 8  # 16-bit RGBA without compression; a larger file cannot be a picture within max_pixels

FEATURES = datasets.Features(
    {
        "key": datasets.Value("string"),
        "image": datasets.Image(decode=False),
        "caption": datasets.Value("string"),
        "label": datasets.Value("string"),
    }
)


@dataclass(kw_only=True)
class WebDatasetConfig(SourceConfig):
    """Tar shards, read as a stream."""

    shards: str
    """Local shards as a path, a glob (`*`, `**`) or braces (`train-{0000..0099}.tar`), .tar or .tar.gz.
    A shard is the unit that is divided among loader workers."""
    heldout_shards: str | None = None
    """Shards of the held-out samples, same form; null: a share of the samples of `shards`."""
    caption_key: str = "caption"
    """Key of the caption in a .json member; a .txt member comes first."""
    label_key: str | None = None
    """Key of the picture's class in a .json member; null: none."""


class WebDataset(Source):
    """Tar shards. Members are read in memory only: whatever their names say, nothing is written to disk."""

    Config = WebDatasetConfig
    parts_named_by = "shards"

    def __init__(self, config: WebDatasetConfig) -> None:
        super().__init__(config)
        self.label_columns = () if config.label_key is None else ("label",)

    def read(self, part: str) -> datasets.IterableDataset:
        shards = expand(self.name_of(part), where="webdataset")
        settings = {
            "caption_key": self.config.caption_key,
            "label_key": self.config.label_key,
            "largest": self.config.max_pixels * BYTES_PER_PIXEL,
        }
        # `datasets` divides the list-valued argument, so each worker or `.shard(...)` reads its own tar files
        return datasets.IterableDataset.from_generator(
            _samples_of_shards, features=FEATURES, gen_kwargs={"shards": shards, **settings}
        )


def _samples_of_shards(
    shards: list[str], caption_key: str, label_key: str | None, largest: int
) -> Iterator[dict[str, Any]]:
    for shard in shards:
        key: str | None = None
        members: dict[str, bytes] = {}
        for name, content in _members(shard, largest):
            stem, _, extension = _split_name(name)
            if stem != key:
                if key is not None:
                    yield from _sample(key, members, caption_key, label_key)
                key, members = stem, {}
            if extension in members:
                logger.warning("%s: member %s appears twice, the first is kept", shard, name)
            members.setdefault(extension, content)
        if key is not None:
            yield from _sample(key, members, caption_key, label_key)


def _split_name(name: str) -> tuple[str, str, str]:
    """Split at the first dot of the last path component, as WebDataset does."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return folder + slash + stem, dot, extension.lower()


def _members(shard: str, largest: int) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the plain files of a tar; a damaged tail ends the shard with a log entry."""
    try:
        with tarfile.open(shard, mode="r|*") as tar:
            for member in tar:
                extension = _split_name(member.name)[2].rsplit(".", 1)[-1]
                limit = largest if extension in IMAGE_EXTENSIONS else LARGEST_TEXT
                if not member.isreg() or not (extension in IMAGE_EXTENSIONS or extension in ("txt", "json")):
                    continue
                if member.size > limit:
                    logger.warning("%s: member %s of %d bytes is above %d", shard, member.name, member.size, limit)
                    continue
                file = tar.extractfile(member)
                if file is not None:
                    yield member.name, file.read()
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        logger.warning("%s: the rest of the shard is unreadable: %s", shard, error)


def _sample(key: str, members: dict[str, bytes], caption_key: str, label_key: str | None) -> Iterator[dict[str, Any]]:
    """Yield the sample of one group, if it holds a picture."""
    for extension in IMAGE_EXTENSIONS:
        if extension in members:
            image = {"bytes": members[extension], "path": f"{key}.{extension}"}
            entry = _entry(key, members)
            caption = members["txt"].decode("utf-8", errors="replace").strip() if "txt" in members else None
            yield {
                "key": key,
                "image": image,
                "caption": _text(entry, caption_key) if caption is None else caption,
                "label": "" if label_key is None else _text(entry, label_key),
            }
            return


def _entry(key: str, members: dict[str, bytes]) -> dict[str, Any]:
    """Return the object in a .json member; an empty one where there is none."""
    try:
        entry = json.loads(members.get("json", b"{}"))
    except ValueError as error:
        logger.warning("%s.json is not JSON: %s", key, error)
        return {}
    return entry if isinstance(entry, dict) else {}


def _text(entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    return "" if value is None else str(value)
