"""Indices of documents' pictures that are made while training."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from mmlm.data.document_shards import DocumentRows, DocumentShards
from mmlm.data.shards import ShardError
from visual_tokenizer.data.decoding import decode_image


class IndicesOnTheFly:
    """Indices that the visual tokenizer makes of the pictures now, on its device; threads decode.

    A picture that could be read when the documents were counted and now cannot ends the run: its place in the sequence
    is fixed.

    Args:
        shards: of the documents; their processor has its visual tokenizer.
        rows: of the shards.
        threads: that decode; 0: none beside the caller.
    """

    def __init__(self, shards: DocumentShards, rows: DocumentRows, threads: int) -> None:
        self.processor, self.source, self.rows, self.threads = shards.processor, shards.source, rows, threads
        self.encoded: Any = shards.load_encoded().with_format(None)

    def __call__(self, rows: Sequence[int]) -> list[list[np.ndarray]]:
        """Return, for each row, the flat indices (n,) of each of its pictures."""
        if self.threads:
            with ThreadPoolExecutor(self.threads) as pool:
                images = list(pool.map(self._decode, rows))
        else:
            images = [self._decode(row) for row in rows]
        flat = [image for own in images for image in own]
        indices = iter(self.processor.encode_images(flat).flatten(1).numpy() if flat else ())
        return [[next(indices) for _ in own] for own in images]

    def _decode(self, row: int) -> list[Image.Image]:
        numbers = self.rows.pictures[row].tolist()
        if not numbers:
            return []
        document = self.source.document(self.encoded[int(self.rows.source_rows[row])])
        pictures = document.pictures
        if document.key != self.rows.keys[row] or numbers[-1] >= len(pictures):
            raise ShardError(
                f"the documents have changed since they were counted: {self.rows.keys[row]} is now {document.key}, "
                f"with {len(pictures)} pictures. Delete the set's folder in data.shards_dir to count them again"
            )
        most = self.source.config.max_pixels
        return [decode_image(pictures[n].data, key=f"{document.key}#{n}", max_pixels=most) for n in numbers]
