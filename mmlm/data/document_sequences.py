"""Documents as training sequences; every choice follows from seed, epoch and index."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from mmlm.cross_entropy import IGNORED_LABEL
from mmlm.data.document_shards import DocumentRows
from mmlm.data.pairs import IMAGE, STRUCTURE
from mmlm.data.picture_indices import PictureIndices, StoredIndices
from mmlm.data.shards import ShardError
from mmlm.documents.base import DocumentSource, Placed
from mmlm.layouts.base import Grid, Layout
from visual_tokenizer.data.transforms import uniforms
from visual_tokenizer.errors import UserError


class DocumentSequences(Dataset):
    """Sequences of documents, over and over: position p is document `p % N` of the order of epoch `p // N`.

    Items are those of `PairSequences`.

    Args:
        shards: rows of `load_shards` of a folder of documents.
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
        shards: datasets.Dataset,
        layout: Layout,
        source: DocumentSource,
        *,
        name: str = "documents",
        indices: PictureIndices | None = None,
        seed: int = 0,
        shuffle: bool = True,
        is_heldout: bool = False,
    ) -> None:
        if len(shards) == 0:
            raise ShardError(f"{name}: there are no documents: the split is empty, or its limits leave nothing")
        self.layout, self.source, self.name, self.seed, self.shuffle = layout, source, name, seed, shuffle
        self.is_heldout = is_heldout
        self.rows = DocumentRows(shards)
        self.size = len(self.rows)
        self.indices = StoredIndices(self.rows, layout.vocabulary.num_codebooks) if indices is None else indices
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
                "data.max_length and the model's positions: set data.max_length, or the member's limits.max_tokens"
            )

    def lengths(self, positions: Sequence[int]) -> np.ndarray:
        """Return the tokens of each item (n,) int64, without making it."""
        places = [self.row_of(int(position)) for position in positions]
        if not self.source.varies:
            return self.rows.lengths[[row for _, row in places]]
        found = np.empty(len(places), np.int64)
        for number, (epoch, row) in enumerate(places):
            own = self.rows.piece_lengths[row]
            found[number] = sum(int(own[placed.place]) for placed in self._form(epoch, row))
        return found

    def row_of(self, position: int) -> tuple[int, int]:
        """Return the epoch and the row of the shards that a position stands for."""
        epoch, place = divmod(position, self.size)
        return epoch, int(self._order(epoch)[place])

    def _make_order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.size)
        return np.random.default_rng((self.seed, epoch)).permutation(self.size)

    def _form(self, epoch: int, row: int) -> list[Placed]:
        """Return the pieces of a sequence in order; the layout's own at both ends stay where they are."""
        kinds, trained = self.rows.kinds[row].tolist(), self.rows.trained[row].tolist()
        whole = [Placed(place, bool(is_trained)) for place, is_trained in enumerate(trained)]
        if not self.source.varies:
            return whole
        content = [place for place, kind in enumerate(kinds) if kind != STRUCTURE]
        first, last = content[0], content[-1]
        chance = uniforms(self.seed, epoch, row)
        pictures = [kind == IMAGE for kind in kinds[first : last + 1]]
        arranged = self.source.arrange(pictures, chance, is_heldout=self.is_heldout)
        inner = [Placed(first + one.place, one.is_trained and whole[first + one.place].is_trained) for one in arranged]
        return [*whole[:first], *inner, *whole[last + 1 :]]

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """Return the items of a batch; faster than one by one."""
        places = [self.row_of(int(position)) for position in positions]
        blocks = self._blocks([row for _, row in places])
        return [self._sequence(epoch, row, own) for (epoch, row), own in zip(places, blocks, strict=True)]

    def _blocks(self, rows: list[int]) -> list[list[np.ndarray]]:
        """Return the blocks of each row's pictures; those of one grid go through the vocabulary together."""
        indices = self.indices(rows)
        grids = [self.rows.grids_of(row) for row in rows]
        by_grid: dict[Grid, list[tuple[int, int]]] = {}
        for number, own in enumerate(grids):
            for picture, grid in enumerate(own):
                by_grid.setdefault(grid, []).append((number, picture))
        blocks: list[list[np.ndarray]] = [[np.empty(0)] * len(own) for own in grids]
        books = self.layout.vocabulary.num_codebooks
        for grid, members in by_grid.items():
            flat = np.stack([indices[number][picture] for number, picture in members]).astype(np.int64)
            shaped = flat.reshape(len(members), *grid, *([books] if books > 1 else []))
            for (number, picture), block in zip(members, self.layout.blocks(torch.from_numpy(shaped)), strict=True):
                blocks[number][picture] = block.numpy()
        return blocks

    def _sequence(self, epoch: int, row: int, blocks: list[np.ndarray]) -> dict[str, np.ndarray]:
        kinds, lengths = self.rows.kinds[row], self.rows.piece_lengths[row]
        is_picture = kinds == IMAGE
        numbers = np.cumsum(is_picture) - 1
        starts = np.cumsum(np.where(is_picture, 0, lengths)) - np.where(is_picture, 0, lengths)
        ids: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        token_kinds: list[np.ndarray] = []
        for place, is_trained in self._form(epoch, row):
            if is_picture[place]:
                own = blocks[numbers[place]]
                grid = self.rows.grids_of(row)[numbers[place]]
                token_kinds.append(np.where(self.layout.template(grid).numpy() < 0, IMAGE, STRUCTURE))
            else:
                own = self.rows.ids[row][starts[place] : starts[place] + lengths[place]]
                token_kinds.append(np.full(len(own), kinds[place]))
            ids.append(own)
            labels.append(own if is_trained else np.full(len(own), IGNORED_LABEL))
        item = {"input_ids": ids, "labels": labels, "token_kinds": token_kinds}
        return {name: np.concatenate(parts).astype(np.int64) for name, parts in item.items()}
