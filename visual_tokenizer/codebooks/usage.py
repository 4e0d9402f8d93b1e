"""How evenly one batch uses the codes, without a table of all codes where there are too many."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from visual_tokenizer.codebooks.search import code_counts

COUNTED_CODES = 2**20
"""Largest codebook for which a table of all codes is counted (4 MiB); beyond it the batch's indices are sorted."""


def distinct_counts(indices: Tensor) -> Tensor:
    """Count how often each index that occurs does, by sorting: no table of all codes, no host sync.

    Of M integers it returns (M + 1,) float32: a count for each distinct index in ascending order, then zeros.
    """
    ordered = indices.reshape(-1).sort().values
    is_next = torch.cat([ordered.new_zeros(1), (ordered[1:] != ordered[:-1]).long()])[: ordered.shape[0]]
    return code_counts(is_next.cumsum(0), ordered.shape[0] + 1)


def usage_metrics(indices: Tensor, codebook_size: int) -> dict[str, Tensor]:
    """Return perplexity exp(H) and usage (share of codes used) of one batch's indices, exact at any codebook size.

    The memory is that of min(codebook_size, 2^20) counts or of the indices, whichever the size of the codebook calls
    for; never codebook_size where that is larger.
    """
    if codebook_size > COUNTED_CODES:
        return batch_metrics(distinct_counts(indices), codebook_size)
    # Each token looks up how often its code occurs: log-counts and shares of tokens, not of all codes.
    flat = indices.reshape(-1)
    total = max(flat.shape[0], 1)
    counts = code_counts(flat, codebook_size).index_select(0, flat)
    entropy = math.log(total) - counts.log().sum() / total
    return {"perplexity": entropy.exp(), "usage": counts.reciprocal().sum() / codebook_size}


def batch_metrics(counts: Tensor, codebook_size: int | None = None) -> dict[str, Tensor]:
    """Return perplexity exp(H) and usage (share of codes used) of the counts of one batch.

    Codes that were not chosen may be left out, if `codebook_size` is given; None takes the number of counts.
    """
    total = counts.sum().clamp_min(1)
    entropy = total.log() - torch.special.xlogy(counts, counts).sum() / total
    size = counts.shape[0] if codebook_size is None else codebook_size
    return {"perplexity": entropy.exp(), "usage": counts.clamp(max=1).sum() / size}
