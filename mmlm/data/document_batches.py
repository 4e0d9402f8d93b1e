"""Encoded rows of documents → pieces and pixels: what loader processes do, before the visual tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from PIL import Image
from torch import Tensor

from mmlm.data.document_pieces import DroppedDocumentError, PieceMaker
from mmlm.data.pairs import IMAGE
from mmlm.data.piece import Piece
from mmlm.documents.base import BrokenDocumentError, Document, DocumentSource, Part, Picture, Turn
from visual_tokenizer.data.decoding import UnreadableImageError, decode_image

UNREADABLE = "pictures left out because they are missing or unreadable"


class NumberedRows:
    """Rows of a map-style set that know their number, which is their key `row`."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows.with_format(None)

    def with_format(self, _: None) -> NumberedRows:
        return self

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self.rows[number], "row": number}


class KeptDocument(NamedTuple):
    """A document that is part of the data."""

    key: str
    """The document's."""
    row: int
    """Number of its row in the split; -1 in a stream."""
    pieces: list[Piece]
    """`picture` counts the pictures that are readable."""
    pictures: list[int]
    """Which pictures of the source's document those in the pieces are, in their order."""


@dataclass
class DocumentBatch:
    """Documents of one unit."""

    unit: int
    """Unit of the plan."""
    is_last: bool
    """Whether the unit ends with it."""
    pixels: Tensor | None
    """(P, 3, H, W) in [-1, 1] of all pictures of the kept documents in order; None: there are none, or none wanted."""
    kept: list[KeptDocument] = field(default_factory=list)
    """The documents that are part of the data."""
    dropped: dict[str, str] = field(default_factory=dict)
    """Reason by key of the others."""
    changed: Counter[str] = field(default_factory=Counter)
    """How often something was cut or left out of a kept document, by what."""
    readable: int = 0
    """Pictures that were decoded."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Reason by key of those that could not be; the key ends with the picture's number."""

    @property
    def rows(self) -> int:
        """Rows that were read."""
        return len(self.kept) + len(self.dropped)


def readable_document(
    source: DocumentSource, document: Document
) -> tuple[Document, list[Image.Image], list[int], dict[str, str]]:
    """Return a document without its unreadable pictures, the others decoded, their numbers, and reasons by key."""
    images: list[Image.Image] = []
    numbers: list[int] = []
    unreadable: dict[str, str] = {}
    number = 0
    turns = []
    for turn in document.turns:
        parts: list[Part] = []
        for part in turn.parts:
            if isinstance(part, Picture):
                key = f"{document.key}#{number}"
                try:
                    images.append(decode_image(part.data, key=key, max_pixels=source.config.max_pixels))
                    numbers.append(number)
                    parts.append(part)
                except UnreadableImageError as error:
                    unreadable[key] = error.reason
                number += 1
            else:
                parts.append(part)
        turns.append(Turn(turn.role, tuple(parts)))
    return replace(document, turns=tuple(turns)), images, numbers, unreadable


class DocumentDecoding:
    """Makes pieces of encoded rows, and sets aside what is left out.

    Args:
        source: of the rows.
        image_processor: picture → pixels; None: pixels are not wanted, only whether pictures can be read.
        make: makes pieces.
    """

    def __init__(self, source: DocumentSource, image_processor: Any, make: PieceMaker) -> None:
        self.source, self.image_processor, self.make = source, image_processor, make

    def __call__(self, rows: Sequence[Mapping[str, Any]], unit: int, is_last: bool) -> DocumentBatch:
        """Return the batch of these rows."""
        batch = DocumentBatch(unit, is_last, None)
        wanted: list[Image.Image] = []
        for row in rows:
            key = str(row["key"])
            try:
                kept, images = self._keep(self.source.document(row), int(row.get("row", -1)), batch)
            except (BrokenDocumentError, DroppedDocumentError) as error:
                while key in batch.dropped:  # keys that occur twice are both counted
                    key += "'"
                batch.dropped[key] = str(error)
                continue
            batch.kept.append(kept)
            wanted += images
        if wanted and self.image_processor is not None:
            batch.pixels = self.image_processor(wanted, return_tensors="pt")["pixel_values"]
        return batch

    def _keep(self, document: Document, row: int, batch: DocumentBatch) -> tuple[KeptDocument, list[Image.Image]]:
        whole, images, numbers, unreadable = readable_document(self.source, document)
        batch.readable += len(images)
        batch.unreadable.update(unreadable)
        if unreadable and self.source.config.missing_pictures == "drop_document":
            raise DroppedDocumentError("a picture is missing or unreadable")
        pieces, changed = self.make(whole)
        batch.changed.update(changed)
        if unreadable:
            batch.changed[UNREADABLE] += len(unreadable)
        used = [piece.picture for piece in pieces if piece.kind == IMAGE]
        kept = KeptDocument(document.key, row, pieces, [numbers[place] for place in used])
        return kept, [images[place] for place in used]
