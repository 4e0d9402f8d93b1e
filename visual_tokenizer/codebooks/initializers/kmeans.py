"""k-means on a pool of early latents.

Lloyd's algorithm on the latents' own device: assignment by chunked GEMM, means by index-add, empty clusters moved to
the latents farthest from their centre. Source: Least squares quantization in PCM (Lloyd, 1982); as warm start of a
codebook: Robust Training of Vector Quantized Bottleneck Models (Łańcucki et al., 2020), arXiv:2005.08520, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visual_tokenizer.codebooks.distributed import broadcast_from_first_rank
from visual_tokenizer.codebooks.initializers.base import Initializer, InitializerConfig
from visual_tokenizer.codebooks.search import code_counts, nearest_codes


@dataclass(kw_only=True)
class KMeansConfig(InitializerConfig):
    """Fields of the k-means initializer."""

    samples: int = 65536
    """Latents in the pool, over all ranks; 1 or more, better 8 or more a code."""

    iterations: int = 10
    """Lloyd iterations; 1 or more."""

    seed: int = 0
    """Seed of the choice of the first centres."""

    def __post_init__(self) -> None:
        for name in ("samples", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")


class KMeans(Initializer):
    """Centres of the latents' clusters."""

    Config = KMeansConfig

    @property
    def samples(self) -> int:
        return self.config.samples

    def at_construction(self, codebook_size: int, code_dim: int) -> Tensor:
        return torch.randn(codebook_size, code_dim) * code_dim**-0.5

    @torch.no_grad()
    def from_latents(self, latents: Tensor, codebook_size: int) -> Tensor:
        latents = latents[: self.samples]
        generator = torch.Generator().manual_seed(self.config.seed)
        chosen = torch.randperm(latents.shape[0], generator=generator)[:codebook_size].to(latents.device)
        centres = latents[chosen]
        missing = codebook_size - centres.shape[0]
        if missing > 0:  # fewer latents than codes: repeat them, with noise that tells the copies apart
            again = torch.randint(latents.shape[0], (missing,), generator=generator).to(latents.device)
            noise = torch.randn(missing, latents.shape[1], generator=generator).to(latents)
            scale = 0.01 * latents.std(unbiased=False).clamp_min(1e-6)
            centres = torch.cat([centres, latents[again] + scale * noise])
        for _ in range(self.config.iterations):
            centres = self._lloyd(latents, centres)
        return broadcast_from_first_rank(centres.contiguous())

    @staticmethod
    def _lloyd(latents: Tensor, centres: Tensor) -> Tensor:
        indices = nearest_codes(latents, centres)
        counts = code_counts(indices, centres.shape[0])
        sums = torch.zeros_like(centres).index_add_(0, indices, latents)
        means = sums / counts[:, None].clamp_min(1)
        empty = counts == 0
        if latents.shape[0] > centres.shape[0] and bool(empty.any()):
            errors = (latents - centres[indices]).square().sum(dim=1)
            rows = empty.nonzero().squeeze(1)
            means[rows] = latents[errors.topk(rows.numel()).indices]
            return means
        return torch.where(empty[:, None], centres, means)
