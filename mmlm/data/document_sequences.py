"""Documents as training sequences; every choice follows from seed, epoch and index."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from mmlm.data.document_shards import StoredDocuments, StoredPiece
from mmlm.data.shards import ShardError
from mmlm.documents.base import DocumentSource, Placed
from mmlm.layouts.base import Grid, Layout
from mmlm.losses.cross_entropy import IGNORED_LABEL
from mmlm.vocabulary import IMAGE, STRUCTURE
from visual_tokenizer.data.transforms import uniforms
from visual_tokenizer.errors import UserError

PictureIndices = Callable[[Sequence[int]], list[list[np.ndarray]]]
"""Returns, for each row, the flat indices (n,) of each of its pictures."""
Blocks = dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]
"""Tokens of pictures and their kinds, each (L,), by number of the row and of its picture."""


class DocumentSequences(Dataset):
    """Sequences of documents, over and over: position p is document `p % N` of the order of epoch `p // N`.

    So a run of S steps with B sequences each reads the positions 0 … S · B - 1 in turn, whatever the number of
    processes, and resumes anywhere.

    Items are dicts of int64 arrays (L,): `input_ids`; `labels`, which are the ids or -100 where nothing is
    trained; `token_kinds`, a place in `KINDS`.

    Args:
        rows: of the shards.
        layout: makes blocks.
        source: arranges the pieces of a document.
        name: of the set, for messages.
        indices: where the pictures' indices come from; None: the shards.
        seed: of order and arrangement.
        shuffle: False for the order of the shards, which evaluation wants.
        is_heldout: whether nothing may be left out of documents at random.

    Raises:
        ShardError: no documents.
    """

    def __init__(
        self,
        rows: StoredDocuments,
        layout: Layout,
        source: DocumentSource,
        *,
        name: str = "documents",
        indices: PictureIndices | None = None,
        seed: int = 0,
        shuffle: bool = True,
        is_heldout: bool = False,
    ) -> None:
        if len(rows) == 0:
            raise ShardError(f"{name}: there are no {rows.items}: the split is empty, or its limits leave nothing")
        self.rows, self.layout, self.source, self.name = rows, layout, source, name
        self.seed, self.shuffle, self.is_heldout = seed, shuffle, is_heldout
        self.size = len(rows)
        """Sequences in all."""
        self.indices: PictureIndices = self._stored_indices if indices is None else indices
        self._order = functools.lru_cache(maxsize=2)(self._make_order)

    def __len__(self) -> int:
        return self.size

    def longest(self) -> int:
        """Return the tokens of the longest sequence that can come."""
        return int(self.rows.lengths.max())

    def check_length(self, max_positions: int) -> None:
        """Raise `UserError` if the longest sequence has more than `max_positions` tokens."""
        if self.longest() > max_positions:
            raise UserError(
                f"the longest document of '{self.name}' has {self.longest()} tokens, more than the {max_positions} of "
                f"data.max_length and the model's positions: {self.rows.remedy}"
            )

    def lengths(self, positions: Sequence[int]) -> np.ndarray:
        """Return the tokens of each item (n,) int64, without making it."""
        places = [self.row_of(int(position)) for position in positions]
        found = self.rows.lengths[[row for _, row in places]]
        if self.source.may_leave_out(is_heldout=self.is_heldout):
            for number, place in enumerate(places):
                first, end, arranged = self._arranged(*place)
                if len(arranged) < end - first:
                    found[number] = sum(piece.length for piece in self._form(*place))
        return found

    def row_of(self, position: int) -> tuple[int, int]:
        """Return the epoch and the row of the shards that a position stands for."""
        epoch, place = divmod(position, self.size)
        return epoch, int(self._order(epoch)[place])

    def _make_order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.size)
        return np.random.default_rng((self.seed, epoch)).permutation(self.size)

    def _arranged(self, epoch: int, row: int) -> tuple[int, int, list[Placed]]:
        """Return where a document's own pieces begin and end, and which of them are in a sequence, counted from there;
        the layout's at both ends stay where they are."""
        first, end, are_pictures = _content(self.rows.kinds_of(row))
        chance = uniforms(self.seed, epoch, row)
        return first, end, self.source.arrange(are_pictures, chance, is_heldout=self.is_heldout)

    def _form(self, epoch: int, row: int) -> list[StoredPiece]:
        """Return the pieces of a sequence in order."""
        pieces = self.rows.pieces(row)
        if not self.source.varies:
            return pieces
        first, end, arranged = self._arranged(epoch, row)
        form = pieces[:first]
        for place, is_trained in arranged:
            piece = pieces[first + place]
            form.append(piece if is_trained or not piece.is_trained else piece._replace(is_trained=False))
        return form + pieces[end:]

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Return the items of a batch; faster than one by one."""
        places = [self.row_of(int(position)) for position in positions]
        blocks = self._blocks([row for _, row in places])
        return [_sequence(self._form(*place), number, blocks) for number, place in enumerate(places)]

    def _stored_indices(self, rows: Sequence[int]) -> list[list[np.ndarray]]:
        """Return, for each row, the flat indices (n,) of each of its pictures, as the shards hold them."""
        books, found = self.layout.vocabulary.num_codebooks, []
        for row in rows:
            flat, start, own = self.rows.indices[row], 0, []
            for grid in self.rows.grids_of(row):
                end = start + math.prod(grid) * books
                own.append(flat[start:end])
                start = end
            found.append(own)
        return found

    def _blocks(self, rows: list[int]) -> Blocks:
        """Return the blocks of the pictures of rows; pictures of one grid go through the vocabulary together."""
        by_grid: dict[Grid, list[tuple[tuple[int, int], np.ndarray]]] = {}
        for number, (row, indices) in enumerate(zip(rows, self.indices(rows), strict=True)):
            for picture, grid in enumerate(self.rows.grids_of(row)):
                by_grid.setdefault(grid, []).append(((number, picture), indices[picture]))
        blocks: Blocks = {}
        books = self.layout.vocabulary.num_codebooks
        for grid, members in by_grid.items():
            flat = np.stack([indices for _, indices in members]).astype(np.int64)
            shaped = flat.reshape(len(members), *grid, *([books] if books > 1 else []))
            kinds = np.where(self.layout.template(grid).numpy() < 0, IMAGE, STRUCTURE)
            filled = self.layout.blocks(torch.from_numpy(shaped)).numpy()
            blocks.update((place, (block, kinds)) for (place, _), block in zip(members, filled, strict=True))
        return blocks


@functools.lru_cache(maxsize=1024)
def _content(kinds: tuple[int, ...]) -> tuple[int, int, tuple[bool, ...]]:
    """Return where a document's own pieces begin and end, and which of them are pictures."""
    own = [place for place, kind in enumerate(kinds) if kind != STRUCTURE]
    return own[0], own[-1] + 1, tuple([kind == IMAGE for kind in kinds[own[0] : own[-1] + 1]])


def _sequence(form: list[StoredPiece], row: int, blocks: Blocks) -> dict[str, np.ndarray]:
    """Return an item: its pieces' ids, of pictures those of their blocks; `row` is its number among the blocks."""
    parts = [blocks[row, piece.picture][0] if piece.kind == IMAGE else piece.ids for piece in form]
    ids = np.concatenate(parts, dtype=np.int64)
    labels, kinds = ids.copy(), np.empty_like(ids)
    start = 0
    for piece in form:
        end = start + piece.length
        kinds[start:end] = blocks[row, piece.picture][1] if piece.kind == IMAGE else piece.kind
        if not piece.is_trained:
            labels[start:end] = IGNORED_LABEL
        start = end
    return {"input_ids": ids, "labels": labels, "token_kinds": kinds}
