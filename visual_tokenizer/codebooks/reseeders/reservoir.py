"""Reservoir reseeding: dead codes move to latents of the last steps, so that none depends on a single batch.

The survey's section 4.2, item 4: a first-in-first-out buffer of latents of all ranks, the same on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from visual_tokenizer.codebooks.distributed import broadcast_from_first_rank, gather_over_ranks
from visual_tokenizer.codebooks.reseeders.base import Reseeder, ReseederConfig, random_order


@dataclass(kw_only=True)
class ReservoirConfig(ReseederConfig):
    """Fields of reservoir reseeding."""

    size: Annotated[int, Ge(1)] = 8192
    """Latents in the buffer."""

    latents_per_step: Annotated[int, Ge(1)] = 512
    """Latents that each rank puts in at each step, drawn at random from its batch."""


class Reservoir(Reseeder):
    """`e_k ← z_j`, j drawn from the buffer."""

    Config = ReservoirConfig
    buffer: Tensor
    seen: Tensor

    def __init__(self, config: ReservoirConfig, *, codebook_size: int, code_dim: int) -> None:
        super().__init__(config, codebook_size=codebook_size, code_dim=code_dim)
        self.register_buffer("buffer", torch.zeros(config.size, code_dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, latents: Tensor) -> None:
        kept = min(self.config.latents_per_step, latents.shape[0])
        drawn = latents[torch.randperm(latents.shape[0], device=latents.device)[:kept]]
        drawn = gather_over_ranks(drawn)[: self.config.size]
        places = (self.seen + torch.arange(drawn.shape[0], device=drawn.device)) % self.config.size
        self.buffer.index_copy_(0, places, drawn)
        self.seen.add_(drawn.shape[0])

    @torch.no_grad()
    def replacements(
        self, latents: Tensor, errors: Tensor, codebook: Tensor, shares: Tensor, dead: Tensor
    ) -> tuple[Tensor, Tensor | int]:
        filled = self.seen.clamp(max=self.config.size)
        return broadcast_from_first_rank(self.buffer[random_order(self.config.size, filled, latents)]), filled
