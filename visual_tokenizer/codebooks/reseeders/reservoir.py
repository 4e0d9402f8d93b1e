"""Reservoir reseeding: dead codes move to latents of the last steps, so that none depends on a single batch.

The survey's section 4.2, item 4: a first-in-first-out buffer of latents of all ranks, the same on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visual_tokenizer.codebooks.distributed import broadcast_from_first_rank, gather_over_ranks
from visual_tokenizer.codebooks.reseeders.base import Reseeder, ReseederConfig, random_order
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class ReservoirConfig(ReseederConfig):
    """Fields of reservoir reseeding."""

    size: int = 8192
    """Latents in the buffer; 1 or more."""

    latents_per_step: int = 512
    """Latents that each rank puts in at each step, drawn at random from its batch; 1 or more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size", "latents_per_step"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)}")


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
