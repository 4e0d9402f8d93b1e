"""Soft repulsion: codes push away codes that are near.

The usual form Σ_{i≠j} exp(−‖e_i − e_j‖²/τ) is divided by K here: it is then the mean number of codes that crowd a code,
0 where all are far apart and K − 1 where all are the same. exp(−‖e_i − e_j‖²/τ) summed over j is the normalizer of
code i's soft assignment to all codes, so that codes × codes never stand in memory as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from visual_tokenizer.codebooks.regularizers.base import Regularizer, RegularizerConfig
from visual_tokenizer.codebooks.soft_assignment import distance_logits, log_normalizers


@dataclass(kw_only=True)
class RepulsionConfig(RegularizerConfig):
    """Fields of the repulsion."""

    temperature: Annotated[float, Gt(0)] = 0.1
    """τ in units of squared distance: codes nearer than about √τ repel each other."""

    max_codes: Literal[0] | Annotated[int, Ge(2)] = 0
    """Codes drawn afresh at each step, on each rank, to estimate the term without bias; 0 takes all. Time grows with
    its square."""


class Repulsion(Regularizer):
    """`mean_i Σ_{j≠i} exp(−‖e_i − e_j‖²/τ)`."""

    Config = RepulsionConfig
    moves_latents = False

    def forward(self, latents: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
        size = codebook.shape[0]
        codes = codebook
        if 0 < self.config.max_codes < size:
            codes = codebook[torch.randperm(size, device=codebook.device)[: self.config.max_codes]]
        codes = codes - codes.detach().mean(dim=0)  # distances stay the same; the norms that cancel become small
        scaled, keys, bias = distance_logits(codes, codes, self.config.temperature)
        crowding = (log_normalizers(scaled, keys, bias) + bias).exp() - 1  # 1 is the code itself
        return crowding.mean() * ((size - 1) / max(codes.shape[0] - 1, 1))
