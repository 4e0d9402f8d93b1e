"""k-means on a pool of early latents.

Paper: Robust Training of Vector Quantized Bottleneck Models (Łańcucki et al., 2020), arXiv:2005.08520, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from visual_tokenizer.codebooks.distributed import broadcast_from_first_rank
from visual_tokenizer.codebooks.initializers.base import Initializer, InitializerConfig
from visual_tokenizer.codebooks.lloyd import cluster_centres


@dataclass(kw_only=True)
class KMeansConfig(InitializerConfig):
    """Fields of the k-means initializer."""

    samples: Annotated[int, Ge(1)] = 65536
    """Latents in the pool, over all ranks; better 8 or more a code."""

    iterations: Annotated[int, Ge(1)] = 10
    """Lloyd iterations."""

    seed: Annotated[int, Ge(0)] = 0
    """Seed of the choice of the first centres."""


class KMeans(Initializer):
    """Centres of the latents' clusters."""

    Config = KMeansConfig

    @property
    def samples(self) -> int:
        return self.config.samples

    @torch.no_grad()
    def from_latents(self, latents: Tensor, codebook_size: int) -> Tensor:
        pool = latents[: self.samples]
        return broadcast_from_first_rank(cluster_centres(pool, codebook_size, self.config.iterations, self.config.seed))
