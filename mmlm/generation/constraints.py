"""Logits processors that leave only what a sequence layout allows at each place.

Shapes: B rows, L tokens so far, V rows of the language model's head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from mmlm.generation.block_grammar import BlockGrammar, Place
from mmlm.layouts.base import Layout
from visual_tokenizer.errors import UserError


class LayoutConstraint(LogitsProcessor):
    """Allows exactly the layout's tokens of one picture, so that whatever is sampled is a picture.

    A fixed slot leaves that one id, a visual slot the ids of its codebook (never dead, padded rows), and after the
    block only EOS is left. The place is counted on the host from the length of the sequence: nothing waits for the
    device. Apply it after guidance, before temperature and top-k.

    Args:
        layout: how a picture sits in a sequence.
        grid: token grid of the picture, (H, W) or (N,); one for all rows of a batch.
        prompt_length: tokens of a row before the first visual one, padding included.
    """

    supports_continuous_batching = False

    def __init__(self, layout: Layout, grid: Sequence[int], prompt_length: int) -> None:
        self.vocabulary = layout.vocabulary
        self.slots: list[int] = [*layout.body(grid).tolist(), layout.eos_id]
        self.prompt_length = prompt_length
        self._forbidden: dict[tuple[int, int, torch.device], Tensor] = {}

    def slot(self, length: int) -> int:
        """Return the slot of the token after `length` tokens: an id, or `-1 - codebook`.

        Raises:
            ValueError: the sequence is shorter than the prompt.
        """
        step = length - self.prompt_length
        if step < 0:
            raise UserError(f"prompt_length is {self.prompt_length}, but a sequence has only {length} tokens")
        return self.slots[min(step, len(self.slots) - 1)]

    def forbidden(self, slot: int, rows: int, device: torch.device) -> Tensor:
        """Return the mask (V,) bool of what `slot` does not allow."""
        key = (slot, rows, device)
        if key not in self._forbidden:
            allowed = self.vocabulary.visual_ids(-1 - slot) if slot < 0 else torch.tensor([slot])
            mask = torch.ones(rows, dtype=torch.bool)
            mask[allowed] = False
            self._forbidden[key] = mask.to(device)
        return self._forbidden[key]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) with -inf at all that is not allowed after `input_ids` (B, L)."""
        mask = self.forbidden(self.slot(input_ids.shape[1]), scores.shape[-1], scores.device)
        return scores.masked_fill(mask, -torch.inf)


class TextConstraint(LogitsProcessor):
    """Allows text and EOS only: no visual, structural, control or dead token.

    Args:
        layout: knows the visual and structural tokens.
        rows: rows of the language model's head, V.
        dead_ranges: ranges [start, stop) of ids that stand for nothing.
    """

    supports_continuous_batching = True

    def __init__(self, layout: Layout, rows: int, dead_ranges: Sequence[Sequence[int]] = ()) -> None:
        ids = torch.arange(rows)
        special = torch.tensor([i for i in layout.tokenizer.all_special_ids if i < rows], dtype=torch.int64)
        self.mask = layout.is_picture_token(ids) | torch.isin(ids, special) | (ids >= len(layout.tokenizer))
        for start, stop in dead_ranges:
            self.mask[start:stop] = True
        self.mask[layout.eos_id] = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) with -inf at all that is not text."""
        self.mask = self.mask.to(scores.device)
        return scores.masked_fill(self.mask, -torch.inf)


class RowwiseConstraint(LogitsProcessor):
    """Allows in each row what its own tokens so far leave open; a subclass says what a place is.

    Rows of a batch may differ, so the newest tokens are read on the host: one wait for the device a token. Where every
    row draws one known grid, `LayoutConstraint` does not wait. Not for beam search, which reorders rows.

    Args:
        prompt_length: tokens of a row before the first one that is counted, padding included.
    """

    supports_continuous_batching = False

    def __init__(self, prompt_length: int) -> None:
        self.prompt_length = prompt_length
        self._places: list[Any] = []
        self._seen = -1
        self._forbidden: dict[tuple[Any, int, torch.device], Tensor] = {}

    def first(self) -> Any:
        """Return the place after the prompt."""
        raise NotImplementedError

    def advance(self, place: Any, token_id: int, length: int) -> Any:
        """Return the place after one more token, before which the row had `length`."""
        raise NotImplementedError

    def key(self, place: Any, length: int) -> Any:
        """Return a hashable name of what is allowed at `place` after `length` tokens."""
        raise NotImplementedError

    def allowed(self, key: Any, rows: int) -> Tensor:
        """Return the ids (n,) int64 that `key` stands for, each below `rows`."""
        raise NotImplementedError

    def places(self, input_ids: Tensor) -> list[Any]:
        """Return the place of each row after `input_ids` (B, L); only what is new since the last call is read."""
        length = input_ids.shape[1]
        if length < self.prompt_length:
            raise UserError(f"prompt_length is {self.prompt_length}, but a sequence has only {length} tokens")
        if self._seen + 1 != length or len(self._places) != len(input_ids):
            self._places = [self.first() for _ in input_ids]  # another call: start anew
            self._seen = self.prompt_length
        for at, column in enumerate(input_ids[:, self._seen :].T.tolist(), start=self._seen):
            self._places = [self.advance(place, token, at) for place, token in zip(self._places, column, strict=True)]
        self._seen = length
        return self._places

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores (B, V) with -inf at all that is not allowed in its row after `input_ids` (B, L)."""
        keys = [self.key(place, input_ids.shape[1]) for place in self.places(input_ids)]
        for key in set(keys):
            if (key, scores.shape[-1], scores.device) not in self._forbidden:
                mask = torch.ones(scores.shape[-1], dtype=torch.bool)
                mask[self.allowed(key, scores.shape[-1])] = False
                self._forbidden[key, scores.shape[-1], scores.device] = mask.to(scores.device)
        masks = [self._forbidden[key, scores.shape[-1], scores.device] for key in keys]
        return scores.masked_fill(torch.stack(masks), -torch.inf)


class GrammarConstraint(RowwiseConstraint):
    """Allows one picture of any of the grammar's grids, then EOS; the model chooses the size or the length.

    Args:
        grammar: the grids.
        prompt_length: tokens of a row before the block's first one, padding included; the block's opening tokens may
            be part of the prompt.
    """

    def __init__(self, grammar: BlockGrammar, prompt_length: int) -> None:
        super().__init__(prompt_length)
        self.grammar = grammar

    def first(self) -> Place:
        return self.grammar.start

    def advance(self, place: Place, token_id: int, length: int) -> Place:
        return place if self.grammar.is_complete(place) else self.grammar.advance(place, token_id)

    def key(self, place: Place, length: int) -> tuple[int, ...]:
        return self.grammar.slots(place) or (self.grammar.layout.eos_id,)

    def allowed(self, key: tuple[int, ...], rows: int) -> Tensor:
        return slot_ids(self.grammar.layout, key)


TEXT, ENDED = "text", "ended"


class InterleavedConstraint(RowwiseConstraint):
    """Allows text with pictures in it: text and EOS, a block as soon as its opening token was drawn, text again.

    A block is only begun where the shortest one still fits, as in Chameleon's generation, and only takes a grid with
    which it fits: none is cut off.

    Args:
        grammar: the grids that pictures may have; the layout has a token that opens a block.
        text: what is allowed outside of pictures.
        prompt_length: tokens of a row before the first one that is drawn, padding included; the prompt ends outside
            of a block.
        max_length: tokens that a row may have in all.
    """

    def __init__(self, grammar: BlockGrammar, text: TextConstraint, prompt_length: int, max_length: int) -> None:
        super().__init__(prompt_length)
        self.grammar, self.text, self.max_length = grammar, text, max_length

    def first(self) -> Any:
        return TEXT

    def advance(self, place: Any, token_id: int, length: int) -> Any:
        layout = self.grammar.layout
        if place == ENDED or (place == TEXT and token_id == layout.eos_id):
            return ENDED
        if place == TEXT:
            if token_id != layout.start_id:
                return TEXT
            return self.grammar.advance(self.grammar.start_within(self.max_length - length), token_id)
        place = self.grammar.advance(place, token_id)
        return TEXT if self.grammar.is_complete(place) else place

    def key(self, place: Any, length: int) -> Any:
        if place == ENDED:
            return (self.grammar.layout.eos_id,)
        if place != TEXT:
            return self.grammar.slots(place)
        return TEXT, self.max_length - length >= self.grammar.shortest

    def allowed(self, key: Any, rows: int) -> Tensor:
        if key[0] != TEXT:
            return slot_ids(self.grammar.layout, key)
        ids = (~self.text.mask.cpu()[:rows]).nonzero().flatten()
        return torch.cat([ids, torch.tensor([self.grammar.layout.start_id])]) if key[1] else ids


def slot_ids(layout: Layout, slots: Sequence[int]) -> Tensor:
    """Return all ids (n,) int64 that any of a template's `slots` allows."""
    return torch.cat([layout.vocabulary.visual_ids(-1 - s) if s < 0 else torch.tensor([s]) for s in slots])
