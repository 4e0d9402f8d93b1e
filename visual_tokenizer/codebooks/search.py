"""Nearest-neighbour search in a codebook, by chunked GEMM."""

from __future__ import annotations

import torch
from torch import Tensor

SCORE_BYTES = 32 * 2**20
"""Budget of one chunk's (tokens × codes) score matrix; it stays in the last-level cache of a server CPU."""


@torch.no_grad()
def nearest_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the code at the smallest Euclidean distance.

    ‖z − e‖² = ‖z‖² − 2 z·e + ‖e‖²; ‖z‖² is the same for all codes, so argmin(½‖e‖² − z·e) is taken, one GEMM with the
    norm folded in. Tokens are taken in chunks, so that the memory is bounded whatever the size of the codebook.

    Args:
        latents: (M, C) float32.
        codebook: (K, C) float32.

    Returns:
        (M,) int64; the smallest index among ties.
    """
    return _smallest_scores(latents, codebook, codebook.square().sum(dim=1).mul_(0.5))


@torch.no_grad()
def most_similar_codes(latents: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the code of the largest inner product: (M, C), (K, C) → (M,) int64."""
    return _smallest_scores(latents, codebook, codebook.new_zeros(codebook.shape[0]))


# One opaque operator, so that torch.compile neither breaks its graph here nor unrolls the chunks.
@torch.library.custom_op("visual_tokenizer::smallest_scores", mutates_args=())
def _smallest_scores(latents: Tensor, codebook: Tensor, offsets: Tensor) -> Tensor:
    """Return argmin over k of (offsets_k − z·e_k)."""
    rows = max(1, SCORE_BYTES // (4 * codebook.shape[0]))
    chunks = [torch.addmm(offsets, chunk, codebook.t(), alpha=-1).argmin(dim=1) for chunk in latents.split(rows)]
    return torch.cat(chunks) if chunks else latents.new_zeros(0, dtype=torch.int64)


@_smallest_scores.register_fake
def _(latents: Tensor, codebook: Tensor, offsets: Tensor) -> Tensor:
    return latents.new_empty(latents.shape[0], dtype=torch.int64)


def code_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """Count how often each code is used, without a host sync.

    Args:
        indices: any shape, int64 in [0, codebook_size).

    Returns:
        (codebook_size,) float32.
    """
    flat = indices.reshape(-1)
    ones = torch.ones(flat.shape, dtype=torch.float32, device=flat.device)
    return ones.new_zeros(codebook_size).index_add_(0, flat, ones)
