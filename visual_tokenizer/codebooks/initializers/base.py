"""Where a codebook's first vectors come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class InitializerConfig(PartConfig, package="visual_tokenizer.codebooks.initializers"):
    """Fields that every initializer has (none)."""


class Initializer:
    """Makes the first codebook."""

    Config: ClassVar[type[InitializerConfig]]

    def __init__(self, config: InitializerConfig) -> None:
        self.config: Any = config

    @property
    def samples(self) -> int:
        """How many latents `from_latents` wants; 0 if the codebook is made without data."""
        return 0

    def at_construction(self, codebook_size: int, code_dim: int) -> Tensor:
        """Return a (codebook_size, code_dim) codebook without data, from torch's global generator."""
        raise NotImplementedError

    def from_latents(self, latents: Tensor, codebook_size: int) -> Tensor:
        """Return a (codebook_size, C) codebook from (M, C) latents of all ranks; the same on every rank."""
        raise NotImplementedError


PART = Initializer
