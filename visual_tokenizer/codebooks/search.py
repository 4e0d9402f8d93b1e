"""Nearest-neighbour search in a codebook, by chunked GEMM."""

from __future__ import annotations

import torch
from torch import Tensor

TILE_BYTES = {"cpu": 4 * 2**20, "cuda": 512 * 2**20}
"""Budget of one tile of scores (tokens × codes). Two tiles' worth fits a CPU core's caches: for 8192 tokens × 8192
codes of 64 channels 4 MiB took 2.0 times less than scores as a whole, most of it page faults of fresh memory."""

TILE_CODES = 8192
"""Codes of a tile, at most."""

BLOCK_CODES = 128
"""Codes whose smallest score is found first. On a CPU `amin` is vectorised and `argmin` is not: over 8192 codes the
smallest block's `argmin` after all blocks' `amin` took 3.4 times less than `argmin` at once."""


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
    size = codebook.shape[0]
    width = min(size, TILE_CODES)
    budget = TILE_BYTES.get(latents.device.type, TILE_BYTES["cuda"])
    rows = min(max(128, budget // (4 * width)), latents.shape[0])
    # Columns beyond the codes of a tile stay infinite, so that blocks are whole.
    memory = latents.new_full((rows, -(-width // BLOCK_CODES) * BLOCK_CODES), torch.inf)
    indices = latents.new_empty(latents.shape[0], dtype=torch.int64)
    for start in range(0, latents.shape[0], max(rows, 1)):
        tokens = latents[start : start + rows]
        best: Tensor | None = None
        for first in range(0, size, TILE_CODES):
            codes = codebook[first : first + TILE_CODES]
            scores = memory[: tokens.shape[0], : -(-codes.shape[0] // BLOCK_CODES) * BLOCK_CODES]
            if codes.shape[0] < width:  # the last tile, where an earlier one left its scores
                scores[:, codes.shape[0] :] = torch.inf
            target = scores[:, : codes.shape[0]]
            torch.addmm(offsets[first : first + TILE_CODES], tokens, codes.t(), alpha=-1, out=target)
            smallest, found = _smallest(scores)
            if best is None:
                best, chosen = smallest, found
            else:  # strictly smaller: the first of equal codes stays
                is_better = smallest < best
                best = torch.where(is_better, smallest, best)
                chosen = torch.where(is_better, found + first, chosen)
        indices[start : start + rows] = chosen
    return indices


def _smallest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest score of each row and its place, the first one among ties: (M, K) → (M,), (M,)."""
    blocks = scores.unflatten(1, (-1, BLOCK_CODES))
    smallest, block = blocks.amin(dim=2).min(dim=1)
    inside = blocks.gather(1, block[:, None, None].expand(-1, 1, BLOCK_CODES)).squeeze(1).argmin(dim=1)
    return smallest, block * BLOCK_CODES + inside


@_smallest_scores.register_fake
def _(latents: Tensor, codebook: Tensor, offsets: Tensor) -> Tensor:
    return latents.new_empty(latents.shape[0], dtype=torch.int64)


def code_counts(indices: Tensor, codebook_size: int) -> Tensor:
    """Count how often each code is used, (codebook_size,) float32, without a host sync.

    Indices are of any shape, int64 in [0, codebook_size).
    """
    flat = indices.reshape(-1)
    ones = torch.ones(flat.shape, dtype=torch.float32, device=flat.device)
    return ones.new_zeros(codebook_size).index_add_(0, flat, ones)
