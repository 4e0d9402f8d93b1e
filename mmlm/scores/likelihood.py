"""How well a merged model predicts samples: in nats a token by kind of token, and of continuations of one beginning."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from mmlm.generation.loop import evaluation_mode
from mmlm.layouts.base import Layout
from mmlm.losses.cross_entropy import IGNORED_LABEL, logits_cross_entropy
from mmlm.losses.head_loss import HeadLoss
from mmlm.vocabulary import IMAGE, KINDS, STRUCTURE, TEXT
from visual_tokenizer.errors import UserError


class KindLoss(NamedTuple):
    """How well one kind of token is predicted."""

    loss: float | None
    """Mean negative log-likelihood in nats a token; None where there are no tokens."""
    tokens: int
    """Tokens of this kind."""


def kinds_of(layout: Layout, ids: Tensor) -> Tensor:
    """Return for each token of one sequence (L,) its place in `KINDS`.

    Structure is EOS and all of a picture block that is not visual, such as its size in text.
    """
    kinds = torch.where(ids == layout.eos_id, STRUCTURE, TEXT)
    for block in layout.find_blocks(ids):
        kinds[block.start : block.end] = STRUCTURE
    return torch.where(layout.vocabulary.is_visual(ids), IMAGE, kinds)


@torch.no_grad()
def token_losses(model: PreTrainedModel, sequences: Sequence[Tensor], pad_id: int, batch_size: int) -> Iterator[Tensor]:
    """Yield for each sequence (L,) the loss of its tokens but the first, (L - 1,) float64 on the CPU, in nats.

    Each token is predicted from those before it in its sequence, over the whole vocabulary.

    Args:
        model: merged causal LM in eval mode.
        sequences: ids (L,) int64 of whole samples.
        pad_id: fills short sequences; no token sees it.
        batch_size: sequences at a time.
    """
    head_loss = HeadLoss(model)
    for start in range(0, len(sequences), batch_size):
        part = list(sequences[start : start + batch_size])
        ids = pad_sequence(part, batch_first=True, padding_value=float(pad_id))
        mask = pad_sequence([torch.ones_like(sequence) for sequence in part], batch_first=True)
        targets = ids.masked_fill(mask == 0, IGNORED_LABEL)[:, 1:].to(model.device)
        inputs = {"input_ids": ids[:, :-1].to(model.device), "attention_mask": mask[:, :-1].to(model.device)}
        found, _ = head_loss(model, inputs, targets, torch.ones_like(targets))
        losses = found.losses.view(targets.shape).double().cpu()
        yield from (row[: len(sequence) - 1] for row, sequence in zip(losses, part, strict=True))


def tally_by_kind(
    model: PreTrainedModel, layout: Layout, sequences: Sequence[Tensor], batch_size: int = 16
) -> dict[str, KindLoss]:
    """Return loss and number of the tokens of each of `KINDS`.

    Args:
        model, batch_size: as of `token_losses`.
        sequences: ids (L,) int64 of whole samples; their first tokens count for nothing.
    """
    sums = torch.zeros(len(KINDS), dtype=torch.float64)
    counts = torch.zeros(len(KINDS), dtype=torch.int64)
    with evaluation_mode(model):
        losses = token_losses(model, sequences, layout.eos_id, batch_size)
        for sequence, found in zip(sequences, losses, strict=True):
            kinds = kinds_of(layout, sequence)[1:]
            sums.index_add_(0, kinds, found)
            counts += torch.bincount(kinds, minlength=len(KINDS))
    return {
        kind: KindLoss(float(total / count) if count else None, int(count))
        for kind, total, count in zip(KINDS, sums, counts, strict=True)
    }


@torch.no_grad()
def continuation_log_likelihoods(
    model: Any, beginning: Tensor, continuations: Sequence[Tensor], pad_id: int, batch_size: int = 64
) -> Tensor:
    """Return log p(continuation | beginning) of each continuation, (N,) float64 on the CPU, in nats.

    The beginning passes the model once; its keys and values serve all continuations, which then go through in
    batches, each token over the whole vocabulary.

    Args:
        model: causal LM in eval mode.
        beginning: ids (L,) int64, L >= 1.
        continuations: ids (l,) int64, l >= 1.
        pad_id: fills short continuations; no token sees it.
        batch_size: continuations at a time, 1 or more.

    Raises:
        ValueError: an empty beginning or continuation.
    """
    if len(beginning) < 1 or min(map(len, continuations), default=1) < 1:
        raise UserError("beginning and continuations must have 1 token or more")
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    if len(beginning) > 1:
        model(input_ids=beginning[None, :-1].to(model.device), past_key_values=cache, use_cache=True)
    last, found = beginning[-1:], []
    for start in range(0, len(continuations), batch_size):
        part = list(continuations[start : start + batch_size])
        targets = pad_sequence(part, batch_first=True, padding_value=float(IGNORED_LABEL))
        inputs = pad_sequence([torch.cat([last, one[:-1]]) for one in part], batch_first=True, padding_value=pad_id)
        own = copy.deepcopy(cache)
        if len(beginning) > 1:
            own.batch_repeat_interleave(len(part))
        logits = model(input_ids=inputs.to(model.device), past_key_values=own, use_cache=True).logits
        targets = targets.to(model.device)
        losses = logits_cross_entropy(logits, targets, torch.ones_like(targets)).losses
        found.append(-losses.view(targets.shape).double().sum(1).cpu())
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)
