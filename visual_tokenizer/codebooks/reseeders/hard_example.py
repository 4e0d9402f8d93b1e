"""Hard-example reseeding: dead codes move to the latents that the codebook serves worst.

The survey's section 4.2, item 2: the latents of all ranks with the largest quantization error δ = ‖z − e_k‖²; a random
choice among twice as many as needed keeps near-copies of one outlier from taking all places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from visual_tokenizer.codebooks.distributed import gather_over_ranks
from visual_tokenizer.codebooks.reseeders.base import Reseeder, ReseederConfig, random_order


@dataclass(kw_only=True)
class HardExampleConfig(ReseederConfig):
    """Fields of hard-example reseeding."""

    pool_factor: Annotated[int, Ge(1)] = 2
    """The pool that replacements are drawn from, as a multiple of the dead codes; 1 takes the very worst."""


class HardExample(Reseeder):
    """Draws from the latents of the largest error."""

    Config = HardExampleConfig

    @torch.no_grad()
    def replacements(
        self, latents: Tensor, errors: Tensor, codebook: Tensor, shares: Tensor, dead: Tensor
    ) -> tuple[Tensor, Tensor | int]:
        most = min(codebook.shape[0] * self.config.pool_factor, latents.shape[0])
        worst = errors.topk(most).indices
        candidates = gather_over_ranks(torch.cat([latents[worst], errors[worst, None]], dim=1))
        candidates = candidates[candidates[:, -1].argsort(descending=True), :-1]
        order = random_order(candidates.shape[0], self.config.pool_factor * dead.sum(), candidates)
        return candidates[order], candidates.shape[0]
