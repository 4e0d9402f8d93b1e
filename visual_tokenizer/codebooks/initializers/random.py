"""Random codebook: uniform in [−1/K, 1/K] (VQ-VAE's, VQGAN's) or Gaussian.

Paper: Neural Discrete Representation Learning (van den Oord et al., 2017), arXiv:1711.00937; the uniform range is that
of the official implementations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from visual_tokenizer.codebooks.initializers.base import Initializer, InitializerConfig


@dataclass(kw_only=True)
class RandomConfig(InitializerConfig):
    """Fields of the random initializer."""

    distribution: Literal["uniform", "normal"] = "normal"
    """`uniform`: in [−1/K, 1/K]; `normal`: standard deviation 1/√C, so that codes have about unit length."""


class Random(Initializer):
    """A codebook that has seen no data."""

    Config = RandomConfig

    def at_construction(self, codebook_size: int, code_dim: int) -> Tensor:
        if self.config.distribution == "uniform":
            return torch.empty(codebook_size, code_dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        return super().at_construction(codebook_size, code_dim)
