"""Random reseeding: dead codes move to random latents of the step, with a little noise.

As in Jukebox: A Generative Model for Music (Dhariwal et al., 2020), arXiv:2005.00341, section 3.1, and the RQ-VAE of
Lee et al. (2022), arXiv:2203.01941; the survey's section 4.2, item 1.
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
class RandomConfig(ReseederConfig):
    """Fields of random reseeding."""

    noise: Annotated[float, Ge(0)] = 0.01
    """Standard deviation σ of the noise, as a fraction of the latents' own along each channel."""


class Random(Reseeder):
    """`e_k ← z_j + σε`."""

    Config = RandomConfig

    @torch.no_grad()
    def replacements(
        self, latents: Tensor, errors: Tensor, codebook: Tensor, shares: Tensor, dead: Tensor
    ) -> tuple[Tensor, Tensor | int]:
        pool = gather_over_ranks(latents)
        chosen = pool[random_order(pool.shape[0], pool.shape[0], pool)]
        if chosen.shape[0] > 0:
            chosen = chosen + self.config.noise * chosen.std(dim=0, unbiased=False) * torch.randn_like(chosen)
        return broadcast_from_first_rank(chosen), chosen.shape[0]
