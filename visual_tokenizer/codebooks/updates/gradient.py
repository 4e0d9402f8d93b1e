"""Gradient update: codes follow the loss ‖sg(z) − e‖² through the optimiser.

Paper: Neural Discrete Representation Learning (van den Oord et al., 2017), arXiv:1711.00937, eq. 3, second term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Gt
from torch import Tensor

from visual_tokenizer.codebooks.assignment import mean_square
from visual_tokenizer.codebooks.updates.base import Update, UpdateConfig


@dataclass(kw_only=True)
class GradientConfig(UpdateConfig):
    """Fields of the gradient update."""

    weight: Annotated[float, Gt(0)] = 1.0
    """Factor on the codebook loss."""


class Gradient(Update):
    """`weight · mean(‖sg(z) − e_k‖²)`, as a loss."""

    Config = GradientConfig
    trains_by_gradient = True

    def __init__(self, config: GradientConfig, **context: Any) -> None:
        super().__init__(config, **context)
        self.weight = config.weight

    def loss(self, latents: Tensor, codes: Tensor) -> Tensor:
        return self.weight * mean_square(codes, latents.detach())
