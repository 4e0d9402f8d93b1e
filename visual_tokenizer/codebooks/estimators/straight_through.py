"""Straight-through estimator: the decoder's gradient is copied from the code to the latent.

Paper: Neural Discrete Representation Learning (van den Oord et al., 2017), arXiv:1711.00937, section 3.2. With
`synchronization` ν the codes get ν times that gradient too, the synchronised update of Straightening Out the
Straight-Through Estimator (Huh et al., 2023), arXiv:2305.08842, section 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from visual_tokenizer.codebooks.assignment import Assignment
from visual_tokenizer.codebooks.estimators.base import Estimator, EstimatorConfig


@dataclass(kw_only=True)
class StraightThroughConfig(EstimatorConfig):
    """Fields of the straight-through estimator."""

    synchronization: Annotated[float, Ge(0)] = 0.0
    """Factor ν of the decoder's gradient that reaches the chosen codes; 0 is the classic estimator. Codes that don't
    learn by gradient ignore it."""


class StraightThrough(Estimator):
    """`sg(e_k) + (z − sg(z)) + ν(e_k − sg(e_k))`: the usual `z + sg(e_k − z)` without its rounding error."""

    Config = StraightThroughConfig

    def forward(self, assignment: Assignment) -> Tensor:
        latents, codes = assignment.latents, assignment.codes
        output = codes.detach() + (latents - latents.detach())
        if self.config.synchronization > 0:
            output = output + self.config.synchronization * (codes - codes.detach())
        return output
