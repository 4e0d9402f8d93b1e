"""Split and perturb: dead codes become noisy copies of the most used ones, which then share their latents.

Source: An Algorithm for Vector Quantizer Design (Linde, Buzo & Gray, 1980); the survey's section 4.2, item 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from visual_tokenizer.codebooks.distributed import broadcast_from_first_rank
from visual_tokenizer.codebooks.reseeders.base import Reseeder, ReseederConfig


@dataclass(kw_only=True)
class SplitConfig(ReseederConfig):
    """Fields of split and perturb."""

    noise: Annotated[float, Gt(0)] = 0.1
    """Standard deviation σ of the noise, as a fraction of the latents' own along each channel."""


class Split(Reseeder):
    """`e_dead ← e_popular + σε`, the i-th dead code from the i-th most used."""

    Config = SplitConfig

    @torch.no_grad()
    def replacements(
        self, latents: Tensor, errors: Tensor, codebook: Tensor, shares: Tensor, dead: Tensor
    ) -> tuple[Tensor, Tensor | int]:
        popular = codebook[shares.masked_fill(dead, -1.0).argsort(descending=True)]
        if latents.shape[0] > 0:
            popular = popular + self.config.noise * latents.std(dim=0, unbiased=False) * torch.randn_like(popular)
        return broadcast_from_first_rank(popular), (~dead).sum()
