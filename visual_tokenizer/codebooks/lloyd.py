"""k-means by Lloyd's algorithm on the vectors' own device.

Source: Least squares quantization in PCM (Lloyd, 1982). Assignment is a chunked GEMM, means are an index-add, and empty
clusters move to the vectors farthest from their centre.
"""

from __future__ import annotations

import torch
from torch import Tensor

from visual_tokenizer.codebooks.search import code_counts, nearest_codes


@torch.no_grad()
def cluster_centres(vectors: Tensor, count: int, iterations: int, seed: int) -> Tensor:
    """Return (count, C) centres of (M, C) vectors; with fewer vectors than centres, copies that noise tells apart."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(vectors.shape[0], generator=generator)[:count].to(vectors.device)
    centres = vectors[chosen]
    missing = count - centres.shape[0]
    if missing > 0:
        again = torch.randint(vectors.shape[0], (missing,), generator=generator).to(vectors.device)
        noise = torch.randn(missing, vectors.shape[1], generator=generator).to(vectors)
        scale = 0.01 * vectors.std(unbiased=False).clamp_min(1e-6)
        centres = torch.cat([centres, vectors[again] + scale * noise])
    for _ in range(iterations):
        centres = _iterate(vectors, centres)
    return centres.contiguous()


def _iterate(vectors: Tensor, centres: Tensor) -> Tensor:
    indices = nearest_codes(vectors, centres)
    counts = code_counts(indices, centres.shape[0])
    means = torch.zeros_like(centres).index_add_(0, indices, vectors) / counts[:, None].clamp_min(1)
    empty = counts == 0
    if vectors.shape[0] > centres.shape[0] and bool(empty.any()):
        errors = (vectors - centres[indices]).square().sum(dim=1)
        rows = empty.nonzero().squeeze(1)
        means[rows] = vectors[errors.topk(rows.numel()).indices]
        return means
    return torch.where(empty[:, None], centres, means)
