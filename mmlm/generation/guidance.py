"""Classifier-free guidance in one batch: conditional rows first, as many unconditional rows after them.

Paper: Classifier-Free Diffusion Guidance (Ho & Salimans, 2022), arXiv:2207.12598; for tokens: Stay on topic with
Classifier-Free Guidance (Sanchez et al., 2023), arXiv:2306.17806. transformers' own processor runs the model a second
time each step with a cache of its own; here both halves share one forward pass and one cache.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Return `unconditional + scale · (conditional - unconditional)`, of the shape of both."""
    return torch.lerp(unconditional, conditional, scale)


class ClassifierFreeGuidance(LogitsProcessor):
    """Puts the guided scores into both halves of the batch, so that both go on with the same token.

    Args:
        scale: 1 leaves the conditional scores as they are; 0 is unconditional.
    """

    supports_continuous_batching = False

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the guided scores (2B, V) of scores (2B, V), conditional half first.

        Raises:
            ValueError: an odd number of rows.
        """
        if scores.shape[0] % 2:
            raise ValueError(f"guidance needs as many unconditional as conditional rows, got {scores.shape[0]} in all")
        conditional, unconditional = scores.chunk(2)
        return guide(conditional, unconditional, self.scale).repeat(2, 1)
