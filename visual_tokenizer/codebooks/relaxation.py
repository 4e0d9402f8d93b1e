"""What the relaxations of a categorical draw share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gumbel_noise(tokens: int, codebook_size: int, like: Tensor) -> Tensor:
    """Return (tokens, codebook_size) draws of −log(−log u), on the device of `like`."""
    return -torch.empty(tokens, codebook_size, device=like.device, dtype=like.dtype).exponential_().log()


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Return the mean over tokens of KL(softmax(logits) ‖ uniform) in nats: (M, K) → scalar, 0 without tokens."""
    log_probabilities = logits.log_softmax(dim=1)
    negative_entropy = (log_probabilities.exp() * log_probabilities).sum(dim=1)
    return (negative_entropy + math.log(logits.shape[1])).sum() / max(logits.shape[0], 1)
