"""Index backpropagation as its formula is written, with tokens × codes in memory.

Paper: Scalable Image Tokenization with Index Backpropagation Quantization (Shi et al., 2024), arXiv:2412.02692,
section 3.2. The yardstick for the estimator `index_backpropagation`, which never holds tokens × codes as a whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseIBQ(nn.Module):
    """`(onehot(argmax p) + p − sg(p)) E` with p = softmax(zEᵀ), and the losses that go with it.

    Args:
        ours: a VQ with the estimator `index_backpropagation` and `loss_weighting: legacy`.
    """

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.codebook = nn.Parameter(ours.codebook.detach().clone())
        self.codebook_weight = ours.config.commitment_weight

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes (B, N, C), indices (B, N) and the sum of the losses."""
        flat = latents.reshape(-1, latents.shape[-1])
        probabilities = (flat @ self.codebook.t()).softmax(dim=1)
        indices = probabilities.argmax(dim=1)
        one_hot = torch.zeros_like(probabilities).scatter_(1, indices[:, None], 1.0)
        codes = (one_hot + (probabilities - probabilities.detach())) @ self.codebook
        nearest = self.codebook[indices]
        loss = (
            F.mse_loss(codes, flat)
            + F.mse_loss(flat, nearest.detach())
            + self.codebook_weight * F.mse_loss(nearest, flat.detach())
        )
        return codes.view(latents.shape), indices.view(latents.shape[:-1]), loss
