"""A document as pieces of a training sequence: ids of text, places of pictures, and what is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from mmlm.data.chat_template import chat_pieces
from mmlm.data.document_batches import DroppedDocumentError, Record
from mmlm.data.piece import Piece
from mmlm.documents.base import Document, Part, Picture, Turn
from mmlm.layouts.base import Grid, Layout
from mmlm.recipes.mixture import DocumentLimits
from mmlm.vocabulary import IMAGE, STRUCTURE, TEXT

TOO_MANY_PICTURES = "pictures left out above max_pictures"
TEXTS_CUT = "texts cut to max_text_tokens"
DOCUMENTS_CUT = "documents cut to max_tokens"
PICTURES_CUT = "pictures left out above max_tokens"


class Pieces(NamedTuple):
    """A document that is part of the data."""

    pieces: list[Piece]
    """From BOS to EOS."""
    changed: Counter[str]
    """How often something was cut or left out, by what."""


class PieceMaker:
    """Turns documents into pieces, within limits.

    Args:
        layout: makes text ids and knows the length of blocks.
        grid: token grid of every picture.
    """

    def __init__(self, layout: Layout, grid: Grid, limits: DocumentLimits) -> None:
        self.layout, self.limits = layout, limits
        self.block = len(layout.template(grid))

    def __call__(self, document: Document) -> Pieces:
        """Return the pieces of a document whose pictures are all readable; `picture` counts them.

        Raises:
            DroppedDocumentError: it has too little, too much, or nothing to train.
        """
        self._check_size(document)
        changed: Counter[str] = Counter()
        make = self._chat if document.is_chat else self._plain
        pieces = make(document, changed)
        if not any(piece.is_trained for piece in pieces):
            raise DroppedDocumentError("nothing to train on")
        return Pieces(pieces, changed)

    def record(self, document: Document) -> Record:
        """Return what is written of a document, as of a call; `lengths` counts a picture as nothing."""
        pieces, changed = self(document)
        columns = {
            "kinds": [piece.kind for piece in pieces],
            "trained": [int(piece.is_trained) for piece in pieces],
            "lengths": [len(piece.ids) for piece in pieces],
            "ids": [token for piece in pieces for token in piece.ids],
        }
        return Record(columns, [piece.picture for piece in pieces if piece.kind == IMAGE], changed)

    def _check_size(self, document: Document) -> None:
        limits, pictures = self.limits, len(document.pictures)
        characters = sum(len(part) for part in document.parts if isinstance(part, str))
        if characters < limits.min_characters:
            raise DroppedDocumentError(f"text of {characters} characters, min_characters is {limits.min_characters}")
        if limits.max_characters is not None and characters > limits.max_characters:
            raise DroppedDocumentError(f"text of {characters} characters, max_characters is {limits.max_characters}")
        if pictures < limits.min_pictures:
            raise DroppedDocumentError(f"{pictures} readable pictures, min_pictures is {limits.min_pictures}")

    def _plain(self, document: Document, changed: Counter[str]) -> list[Piece]:
        content = self._fitted(self._content(self._within_most(document.parts, changed), changed), changed)
        if not content:
            raise DroppedDocumentError("neither text nor pictures")
        bos = [Piece(STRUCTURE, False, self.layout.bos_ids)] if self.layout.bos_ids else []
        return [*bos, *content, Piece(STRUCTURE, True, [self.layout.eos_id])]

    def _within_most(self, parts: Sequence[Part], changed: Counter[str]) -> list[Part]:
        """Return the parts before the first picture above `max_pictures`."""
        most = self.limits.max_pictures
        places = [place for place, part in enumerate(parts) if isinstance(part, Picture)]
        if most is None or len(places) <= most:
            return list(parts)
        changed[TOO_MANY_PICTURES] += len(places) - most
        return list(parts[: places[most]])

    def _content(self, parts: Sequence[Part], changed: Counter[str]) -> list[Piece]:
        pieces, pictures = [], 0
        for part in parts:
            if isinstance(part, Picture):
                pieces.append(Piece(IMAGE, True, [], pictures))
                pictures += 1
                continue
            ids = self.layout.text_ids(part)
            if self.limits.max_text_tokens is not None and len(ids) > self.limits.max_text_tokens:
                changed[TEXTS_CUT] += 1
                ids = ids[: self.limits.max_text_tokens]
            if ids:
                pieces.append(Piece(TEXT, True, ids))
        return pieces

    def length(self, pieces: Sequence[Piece]) -> int:
        """Return the tokens of pieces."""
        return sum(self.block if piece.kind == IMAGE else len(piece.ids) for piece in pieces)

    def _fitted(self, content: list[Piece], changed: Counter[str]) -> list[Piece]:
        """Return the pieces that fit `max_tokens` beside BOS and EOS; the last text may be cut, a picture is not."""
        if self.limits.max_tokens is None:
            return content
        room = self.limits.max_tokens - len(self.layout.bos_ids) - 1
        kept: list[Piece] = []
        for place, piece in enumerate(content):
            size = self.length([piece])
            if size <= room:
                kept.append(piece)
                room -= size
                continue
            changed[DOCUMENTS_CUT] += 1
            left_out = sum(one.kind == IMAGE for one in content[place:])
            if left_out:
                changed[PICTURES_CUT] += left_out
            if piece.kind == TEXT and room > 0:
                kept.append(piece._replace(ids=piece.ids[:room]))
            elif not kept:
                raise DroppedDocumentError(f"its first piece has {size} tokens, max_tokens leaves {max(room, 0)}")
            break
        return kept

    def _chat(self, document: Document, changed: Counter[str]) -> list[Piece]:
        """Return the pieces of a chat, which ends with the last answer with which it is within the limits."""
        turns = list(document.turns)
        reason = "no answer of the assistant"
        whole = 0
        while turns := _up_to_an_answer(turns):
            whole = whole or len(turns)
            pictures = sum(isinstance(part, Picture) for turn in turns for part in turn.parts)
            pieces = chat_pieces(self.layout, turns)
            tokens, limits = self.length(pieces), self.limits
            if limits.max_pictures is not None and pictures > limits.max_pictures:
                reason = f"{pictures} pictures up to the first answer, max_pictures is {limits.max_pictures}"
            elif limits.max_tokens is not None and tokens > limits.max_tokens:
                reason = f"{tokens} tokens up to the first answer, max_tokens is {limits.max_tokens}"
            else:
                if len(turns) < whole:
                    changed["turns left out at the end of chats"] += whole - len(turns)
                return pieces
            turns.pop()
        raise DroppedDocumentError(reason)


def _up_to_an_answer(turns: list[Turn]) -> list[Turn]:
    """Return the turns without those that no answer follows."""
    answers = [place for place, turn in enumerate(turns) if turn.role == "assistant"]
    return turns[: answers[-1] + 1] if answers else []
