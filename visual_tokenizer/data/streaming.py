"""Batches of a streamed source: rows travel encoded and are decoded when a batch is put together."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from visual_tokenizer.data.decoding import UnreadableImageError
from visual_tokenizer.data.sources.base import Source
from visual_tokenizer.data.transforms import (
    TransformConfig,
    bytes_to_pixels,
    flips,
    square_bytes,
    uniforms,
)
from visual_tokenizer.errors import UserError


class StreamCollator:
    """Decodes the rows of a batch; a bad picture is replaced by the next readable one of its batch.

    Replacing keeps batches full and equally many on all ranks. `index` is a hash of the sample's key, because
    a stream has no positions.
    """

    def __init__(
        self,
        source: Source,
        image_size: int,
        transform: TransformConfig,
        seed: int,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    ) -> None:
        self.source = source
        self.image_size = image_size
        self.transform = transform
        self.seed = seed
        self.collate = collate
        self._last_readable: Any = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the collated batch.

        Raises:
            UserError: the share of bad pictures is too large, or none was readable so far.
        """
        samples = [self._sample(row) for row in rows]
        readable = [sample for sample in samples if sample is not None]
        if readable:
            self._last_readable = readable[-1]
        elif self._last_readable is None:
            raise UserError(
                f"none of the first {len(rows)} pictures is readable; reasons: {self.source.report.reasons}"
            )
        stand_in: dict[str, Any] = readable[0] if readable else self._last_readable
        filled = []
        for sample in reversed(samples):  # from the end, so that the stand-in is the next readable one
            stand_in = stand_in if sample is None else sample
            filled.append(stand_in)
        return self.collate(filled[::-1])

    def _sample(self, row: dict[str, Any]) -> dict[str, Any] | None:
        try:
            decoded = self.source.decode(row)
            self.source.report.readable()
        except UnreadableImageError as error:
            self.source.report.skip(error)
            return None
        index = key_number(row["key"])
        chance = uniforms(self.seed, row["epoch"], index)
        content = decoded[self.source.content]
        pixels = bytes_to_pixels(square_bytes(content, self.image_size, self.transform, chance))
        flipped = flips(self.transform, chance)
        if flipped:
            pixels = pixels.flip(-1)
        known = {"caption": decoded["caption"], "labels": self.source.labels(decoded)}
        return {"pixels": pixels, "index": index, "flipped": flipped, **known}


def key_number(key: str) -> int:
    """Return 63 bits of a hash of the key."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1
