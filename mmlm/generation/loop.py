"""Conditions of every generation: eval mode, left padding, enough positions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from visual_tokenizer.errors import UserError


@contextlib.contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in eval mode, and each of their parts back as it was."""
    states = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, was_training in states:
            part.training = was_training


def pad_left(sequences: Sequence[Tensor], fill: int) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, (B, L) int64 each, of B sequences of ids filled up at the left."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(list(sequences), batch_first=True, padding_value=float(fill), padding_side="left")
    ones = [torch.ones_like(sequence) for sequence in sequences]
    return ids, pad(ones, batch_first=True, padding_value=0, padding_side="left")


def most_positions(model: PreTrainedModel) -> int | None:
    """Return how many tokens a sequence of the model may have; None: its config does not say."""
    limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit


def check_length(model: PreTrainedModel, tokens: int) -> None:
    """Raise `UserError` if a sequence of `tokens` is longer than the model's positions."""
    limit = most_positions(model)
    if limit is not None and tokens > limit:
        raise UserError(
            f"prompt and result have {tokens} tokens, but the model has {limit} positions (max_position_embeddings)"
        )
