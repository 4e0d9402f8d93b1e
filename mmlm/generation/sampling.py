"""Sampling with a random stream of its own for each row.

`generate(do_sample=True)` draws all rows from one global generator: a picture would depend on its neighbours in the
batch. Here the random numbers of a row are known before it starts.
"""

from __future__ import annotations

import hashlib
import random

import torch
from torch import Tensor

from mmlm.recipes.sampling import Sampling
from visual_tokenizer.errors import UserError


def row_uniforms(seed: int, text: str, repeat: int, steps: int) -> Tensor:
    """Return the random numbers (steps,) float64 in (0, 1) of one row.

    They depend on nothing but the arguments: the same on every machine and in every batch.

    Args:
        seed: of the whole call.
        text: the row's prompt.
        repeat: which picture of this prompt it is, from 0.
        steps: tokens to be drawn.
    """
    digest = hashlib.sha256(f"{seed}\0{repeat}\0{text}".encode("utf-8", "surrogatepass")).digest()
    stream = random.Random(int.from_bytes(digest, "big"))
    return torch.tensor([(stream.getrandbits(32) + 0.5) / 2**32 for _ in range(steps)], dtype=torch.float64)


def keep_top_k(scores: Tensor, k: int) -> Tensor:
    """Return scores (B, V) with -inf below the k-th largest of each row; ties with it are kept."""
    least = scores.topk(min(k, scores.shape[-1])).values[:, -1:]
    return scores.masked_fill(scores < least, -torch.inf)


def keep_top_p(scores: Tensor, p: float) -> Tensor:
    """Return scores (B, V) with -inf outside the smallest set of most probable tokens whose probability reaches p."""
    ordered, order = scores.sort(descending=True, stable=True)
    probabilities = ordered.softmax(-1, dtype=torch.float64)
    before = probabilities.cumsum(-1) - probabilities
    drop = torch.empty_like(before, dtype=torch.bool).scatter_(-1, order, before >= p)
    return scores.masked_fill(drop, -torch.inf)


def pick(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Return one token a row, drawn by inverting the cumulative distribution.

    Args:
        scores: (B, V) logits; -inf is never picked.
        uniforms: (B,) float64 in (0, 1).

    Returns:
        (B,) int64.
    """
    cumulative = scores.softmax(-1, dtype=torch.float64).cumsum(-1)
    tokens = torch.searchsorted(cumulative, uniforms[:, None] * cumulative[:, -1:], right=True)
    return tokens.squeeze(-1).clamp(max=scores.shape[-1] - 1)  # only NaN scores lead past the end


class RowSampler:
    """Draws one token a row by temperature, top_k and top_p; `uniforms`, (B, steps) float64, are of `row_uniforms`."""

    def __init__(self, uniforms: Tensor, sampling: Sampling) -> None:
        self.uniforms, self.sampling = uniforms, sampling
        self._is_sound = torch.ones((), dtype=torch.bool, device=uniforms.device)

    def choose(self, scores: Tensor, step: int) -> Tensor:
        """Return the tokens (B,) int64 of scores (B, V) at `step`."""
        best = scores.amax(-1, keepdim=True)
        self._is_sound &= best.isfinite().all()  # stays on the device: looking at it would make each step wait
        sampling = self.sampling
        if sampling.temperature == 0:
            return scores.argmax(-1)
        scores = (scores - best) / sampling.temperature  # the best score is 0, so that no temperature overflows
        if sampling.top_k:
            scores = keep_top_k(scores, sampling.top_k)
        if sampling.top_p < 1:
            scores = keep_top_p(scores, sampling.top_p)
        return pick(scores, self.uniforms[:, step])

    def check_sound(self) -> None:
        """Raise `UserError` if a row had no finite best score: the model's scores are NaN or infinite."""
        if not bool(self._is_sound):
            raise UserError(
                "the model's scores are NaN or infinite: its weights are broken, or overflow in its dtype "
                "(try bfloat16 or float32 in place of float16)"
            )
