"""Soft repulsion: codes push away codes that are near.

The usual form Σ_{i≠j} exp(−‖e_i − e_j‖²/τ) is divided by K here: it is then the mean number of codes that crowd a code,
0 where all are far apart and K − 1 where all are the same. exp(−‖e_i − e_j‖²/τ) summed over j is the normalizer of
code i's soft assignment to all codes, so that codes × codes never stand in memory as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from visual_tokenizer.codebooks.regularizers.base import Regularizer, RegularizerConfig
from visual_tokenizer.codebooks.soft_assignment import distance_logits, log_normalizers
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class RepulsionConfig(RegularizerConfig):
    """Fields of the repulsion."""

    temperature: float = 0.1
    """τ in units of squared distance, above 0: codes nearer than about √τ repel each other."""

    max_codes: int = 0
    """Codes drawn afresh at each step, on each rank, to estimate the term without bias; 2 or more, 0 takes all. Time
    grows with its square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise UserError(f"temperature must be above 0, got {self.temperature}")
        if self.max_codes < 0 or self.max_codes == 1:
            raise UserError(f"max_codes must be 0 or at least 2, got {self.max_codes}")


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
