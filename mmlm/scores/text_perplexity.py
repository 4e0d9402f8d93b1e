"""Perplexity of a long text by a language model, over windows that overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlm.generation.loop import evaluation_mode
from visual_tokenizer.errors import UserError

LOGIT_ROWS = 256
"""Tokens whose logits are normalized in float32 at one time."""


@dataclass(frozen=True)
class TextLosses:
    """Mean losses of a text in nats a token."""

    tokens: int
    """Tokens that were predicted: all but the first."""
    loss: float
    """Over the model's whole vocabulary."""
    loss_of_words: float
    """With the excluded ids taken out of the softmax; the same number where none is excluded."""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)

    @property
    def perplexity_of_words(self) -> float:
        """exp(loss_of_words)."""
        return math.exp(self.loss_of_words)


def windows(tokens: int, length: int, stride: int) -> list[tuple[int, int, int]]:
    """Return (start, stop, first) of windows over `tokens` tokens: those from `first` on are predicted in it.

    Each token but the very first is predicted once, from up to `length - stride` tokens or more before it.

    Args:
        tokens: of the text, 2 or more.
        length: most tokens of a window, 2 or more.
        stride: tokens from one window to the next, in 1 … length - 1.
    """
    if tokens < 2:
        raise UserError(f"a text must have 2 tokens or more for one to be predicted, got {tokens}")
    if length < 2:
        raise UserError(f"length must be 2 or more, got {length}")
    if not 1 <= stride < length:
        raise UserError(f"stride must be in 1 … length - 1 = {length - 1}, got {stride}")
    found, first = [], 1
    for start in range(0, tokens, stride):
        stop = min(start + length, tokens)
        found.append((start, stop, first))
        first = stop
        if stop == tokens:
            break
    return found


@torch.no_grad()
def text_losses(model: Any, ids: Sequence[int], length: int, stride: int, excluded: Tensor | None = None) -> TextLosses:
    """Return the mean losses of one text, cut into windows as in transformers' guide to perplexity.

    Args:
        model: causal LM; its mode is restored afterwards.
        ids: the text's tokens, 2 or more.
        length: most tokens of a window.
        stride: tokens from one window to the next; the smaller, the more context and the more work.
        excluded: ids (n,) int64 that `loss_of_words` takes out of the softmax; none of them may be in the text.
    """
    text = torch.as_tensor(ids, dtype=torch.int64)
    if excluded is not None and len(excluded) and bool(torch.isin(text, excluded).any()):
        raise UserError("the text holds ids that are to be excluded from the softmax")
    total = total_of_words = 0.0
    with evaluation_mode(model):
        for start, stop, first in windows(len(text), length, stride):
            part = text[start:stop].to(model.device)
            predicted = stop - first
            logits = model(input_ids=part[None], use_cache=False, logits_to_keep=predicted + 1).logits[0, :-1]
            targets = part[-predicted:]
            for scores, wanted in zip(logits.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True):
                scores = scores.float()
                total += float(F.cross_entropy(scores, wanted, reduction="sum"))
                if excluded is not None and len(excluded):
                    scores = scores.index_fill(1, excluded.to(scores.device), -torch.inf)
                total_of_words += float(F.cross_entropy(scores, wanted, reduction="sum"))
    count = len(text) - 1
    return TextLosses(count, total / count, total_of_words / count)
