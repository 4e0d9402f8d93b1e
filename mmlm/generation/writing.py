"""Text after prompts of equal kind, in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmlm.generation.decoder import CachedDecoder
from mmlm.generation.sampling import RowSampler
from mmlm.processing import MultimodalProcessor

STEPS_BETWEEN_LOOKS = 8
"""Whether all rows have ended is asked so seldom, because the answer makes the host wait for the device."""


def text_ids_of(model: PreTrainedModel, processor: MultimodalProcessor) -> Tensor:
    """Return the ids (n,) int64 that text may consist of, in ascending order.

    EOS is among them, and no visual, structural, control or dead token.
    """
    layout, tokenizer = processor.layout, processor.tokenizer
    ids = torch.arange(model.get_output_embeddings().weight.shape[0])
    special = torch.tensor(tokenizer.all_special_ids, dtype=torch.int64)
    is_other = layout.is_picture_token(ids) | torch.isin(ids, special) | (ids >= len(tokenizer))
    return ids[~(is_other | torch.isin(ids, processor.dead_ids)) | (ids == layout.eos_id)]


@torch.no_grad()
def write_text(
    model: PreTrainedModel,
    prompts: Sequence[Tensor],
    allowed: Tensor,
    sampler: RowSampler,
    max_new_tokens: int,
    eos_id: int,
) -> Tensor:
    """Return the new tokens (B, T) int64 of B prompts, T <= `max_new_tokens`; EOS after a row's end.

    Args:
        model: a causal LM in eval mode.
        prompts: ids (l,) int64 of each row.
        allowed: ids (n,) int64 that may be drawn.
        sampler: with B rows.
        max_new_tokens: most tokens to be added, 1 or more.
        eos_id: ends a row.
    """
    decoder = CachedDecoder(model, prompts, max_new_tokens, eos_id)
    ids = allowed.to(decoder.device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=decoder.device)
    tokens: list[Tensor] = []
    for step in range(max_new_tokens):
        if tokens:
            decoder.feed(tokens[-1][:, None])
        chosen = ids[sampler.choose(decoder.scores(allowed), step)].masked_fill(ended, eos_id)
        tokens.append(chosen)
        ended = ended | (chosen == eos_id)
        if (step + 1) % STEPS_BETWEEN_LOOKS == 0 and bool(ended.all()):
            break
    return torch.stack(tokens, 1)
