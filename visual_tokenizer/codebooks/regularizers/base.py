"""Objectives on codes, beside the reconstruction and the commitment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Gt
from torch import Tensor, nn

from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class RegularizerConfig(PartConfig, package="visual_tokenizer.codebooks.regularizers"):
    """Fields that every regularizer has."""

    weight: Annotated[float, Gt(0)] = 0.1
    """Factor on the term."""


class Regularizer(nn.Module):
    """A term that any quantizer with an explicit codebook can take."""

    Config: ClassVar[type[RegularizerConfig]]
    moves_latents: ClassVar[bool]
    """Whether the term has a gradient with respect to the latents. One that has none shapes the codebook alone, and is
    refused where the codebook is not trained by gradient."""

    def __init__(self, config: RegularizerConfig) -> None:
        super().__init__()
        self.config: Any = config

    def forward(self, latents: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
        """Return the scalar term before its weight.

        Args:
            latents: (M, C) float32, on the unit sphere where the quantizer normalises; with gradient.
            codebook: (K, C) float32, with gradient where the codes learn by it.
            indices: (M,) int64, the code that each latent chose.
        """
        raise NotImplementedError


PART = Regularizer
