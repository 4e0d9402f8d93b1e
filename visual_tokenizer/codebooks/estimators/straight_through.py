"""Straight-through estimator: the decoder's gradient is copied from the code to the latent.

Paper: Neural Discrete Representation Learning (van den Oord et al., 2017), arXiv:1711.00937, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from visual_tokenizer.codebooks.estimators.base import Estimator, EstimatorConfig


@dataclass(kw_only=True)
class StraightThroughConfig(EstimatorConfig):
    """The straight-through estimator has no fields."""


class StraightThrough(Estimator):
    """`sg(e_k) + (z − sg(z))`: the usual `z + sg(e_k − z)` without its rounding error."""

    Config = StraightThroughConfig

    def forward(self, latents: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
        return codebook[indices].detach() + (latents - latents.detach())
