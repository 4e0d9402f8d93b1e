"""How well a merged model predicts samples: loss in nats a token, apart for each kind of token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from mmlm.cross_entropy import IGNORED_LABEL
from mmlm.data.pairs import IMAGE, KINDS, STRUCTURE, TEXT
from mmlm.generation.loop import evaluation_mode
from mmlm.head_loss import HeadLoss
from mmlm.layouts.base import Layout


def kinds_of(layout: Layout, ids: Tensor) -> Tensor:
    """Return for each token of one sequence (L,) its place in `KINDS`.

    Structure is EOS and all of a picture block that is not visual, such as its size in text.
    """
    kinds = torch.where(ids == layout.eos_id, STRUCTURE, TEXT)
    for block in layout.find_blocks(ids):
        kinds[block.start : block.end] = STRUCTURE
    return torch.where(layout.vocabulary.is_visual(ids), IMAGE, kinds)


@torch.no_grad()
def loss_by_kind(
    model: PreTrainedModel, layout: Layout, sequences: Sequence[Tensor], batch_size: int = 16
) -> dict[str, float | None]:
    """Return the mean negative log-likelihood, in nats a token, of each of `KINDS`; None where there are none.

    Each token is predicted from those before it in its sequence, over the whole vocabulary.

    Args:
        model: merged causal LM.
        layout: the one of its processor.
        sequences: ids (L,) int64 of whole samples.
        batch_size: sequences at a time.
    """
    sums = torch.zeros(len(KINDS), dtype=torch.float64)
    counts = torch.zeros(len(KINDS), dtype=torch.int64)
    head_loss = HeadLoss(model)
    with evaluation_mode(model):
        for start in range(0, len(sequences), batch_size):
            part = list(sequences[start : start + batch_size])
            ids = pad_sequence(part, batch_first=True, padding_value=float(layout.eos_id))
            mask = pad_sequence([torch.ones_like(sequence) for sequence in part], batch_first=True)
            targets = ids.masked_fill(mask == 0, IGNORED_LABEL)[:, 1:]
            inputs = {"input_ids": ids[:, :-1].to(model.device), "attention_mask": mask[:, :-1].to(model.device)}
            found, _ = head_loss(model, inputs, targets.to(model.device), torch.ones_like(targets).to(model.device))
            losses = found.losses.view(targets.shape).double().cpu()
            kinds = pad_sequence([kinds_of(layout, sequence) for sequence in part], batch_first=True)[:, 1:]
            trained = targets != IGNORED_LABEL
            sums.index_add_(0, kinds[trained], losses[trained])
            counts += torch.bincount(kinds[trained], minlength=len(KINDS))
    return {
        kind: float(total / count) if count else None for kind, total, count in zip(KINDS, sums, counts, strict=True)
    }
