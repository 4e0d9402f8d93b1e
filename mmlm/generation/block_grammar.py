"""A picture block read or drawn token by token, where its grid is not known beforehand.

A layout's template is the block of one grid. The grammar is a set of templates: what any template that still fits
allows is allowed, and each token leaves fewer of them. Sizes written as text, end tokens of variable lengths and clips
beside pictures need nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmlm.layouts.base import Grid, Layout, MalformedSequenceError
from visual_tokenizer.errors import UserError


class Place(NamedTuple):
    """A place within a block."""

    fitting: tuple[int, ...]
    """Numbers of the templates that the tokens so far fit."""
    offset: int
    """Tokens so far."""


class BlockGrammar:
    """All blocks of some grids, as an automaton over tokens; runs on the host.

    Args:
        layout: how a picture sits in a sequence.
        grids: the token grids that a picture may have, each once.

    Raises:
        UserError: no grid, or one that the layout has no block for.
    """

    def __init__(self, layout: Layout, grids: Sequence[Sequence[int]]) -> None:
        if not grids:
            raise UserError("grids must hold one token grid or more, got none")
        self.layout = layout
        self.grids: list[Grid] = [tuple(grid) for grid in grids]
        self.templates: list[list[int]] = [layout.template(grid).tolist() for grid in self.grids]
        self.start = Place(tuple(range(len(self.grids))), 0)

    @property
    def shortest(self) -> int:
        """Tokens of the shortest block."""
        return min(map(len, self.templates))

    def start_within(self, length: int) -> Place:
        """Return the place before the first token of a block of at most `length` tokens; nothing fits: no templates."""
        return Place(tuple(n for n, template in enumerate(self.templates) if len(template) <= length), 0)

    def slots(self, place: Place) -> tuple[int, ...]:
        """Return what may come next: token ids, and `-1 - c` for the tokens of codebook c; () after the block."""
        following = {self.templates[n][place.offset] for n in place.fitting if place.offset < len(self.templates[n])}
        return tuple(sorted(following))

    def allowed(self, slots: Sequence[int]) -> Tensor:
        """Return all ids (n,) int64 that any of `slots` allows, in ascending order."""
        visual_ids = self.layout.vocabulary.visual_ids
        return torch.cat([visual_ids(-1 - s) if s < 0 else torch.tensor([s]) for s in slots]).sort().values

    def advance(self, place: Place, token_id: int) -> Place:
        """Return the place after one more token.

        Raises:
            MalformedSequenceError: no grid allows the token here; its position is counted from the block's start.
        """
        slots = self.slots(place)
        taken = {slot for slot in slots if self.layout.fits(slot, token_id)}
        if not taken:
            expected = (
                " or ".join(self.layout.describe_slot(slot) for slot in slots) or "nothing: the block is complete"
            )
            raise MalformedSequenceError(place.offset, expected, self.layout.name_of(token_id))
        if len(taken) == len(slots):
            return Place(place.fitting, place.offset + 1)
        left = tuple(
            n
            for n in place.fitting
            if place.offset < len(self.templates[n]) and self.templates[n][place.offset] in taken
        )
        return Place(left, place.offset + 1)

    def is_complete(self, place: Place) -> bool:
        """Return whether the block ends here."""
        return not self.slots(place)

    def grid(self, place: Place) -> Grid | None:
        """Return the grid, as soon as only one is left."""
        return self.grids[place.fitting[0]] if len(place.fitting) == 1 else None
