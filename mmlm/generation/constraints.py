"""Logits processors that leave only what a sequence layout allows at each place.

Shapes: B rows, L tokens so far, V rows of the language model's head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from mmlm.layouts.base import Layout


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
            raise ValueError(f"prompt_length is {self.prompt_length}, but a sequence has only {length} tokens")
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
        """Return scores (B, V) with -inf at all that is no text."""
        self.mask = self.mask.to(scores.device)
        return scores.masked_fill(self.mask, -torch.inf)
