"""Where a codebook's first vectors come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class InitializerConfig(PartConfig, package="visual_tokenizer.codebooks.initializers"):
    """Fields that every initializer has (none)."""


class Initializer:
    """Makes the first codebook: without data, from a pool of early latents, or code by code from the first steps."""

    Config: ClassVar[type[InitializerConfig]]
    is_online: ClassVar[bool] = False
    """Whether codes are set step by step in training, by `next_codes`."""

    def __init__(self, config: InitializerConfig) -> None:
        self.config: Any = config

    @property
    def samples(self) -> int:
        """How many latents `from_latents` wants; 0 if it wants none."""
        return 0

    def at_construction(self, codebook_size: int, code_dim: int) -> Tensor:
        """Return a (codebook_size, code_dim) codebook without data, from torch's global generator.

        Gaussian unless overridden, of standard deviation 1/√C, so that codes have about unit length.
        """
        return torch.randn(codebook_size, code_dim) * code_dim**-0.5

    def from_latents(self, latents: Tensor, codebook_size: int) -> Tensor:
        """Return a (codebook_size, C) codebook from (M, C) latents of all ranks; the same on every rank."""
        raise NotImplementedError

    def next_codes(self, latents: Tensor, errors: Tensor | None, missing: int) -> Tensor:
        """Return 1 to `missing` further codes, (n, C), the same on every rank.

        Args:
            latents: (M, C) of one step, of all ranks; M is 1 or more.
            errors: (M,) squared distance of each latent to the nearest code set so far; None if none is set.
            missing: how many codes are not set yet.
        """
        raise NotImplementedError


PART = Initializer
