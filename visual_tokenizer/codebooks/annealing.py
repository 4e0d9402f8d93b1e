"""Relaxed draws of codes, and the temperature that falls over training, computed from the step on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from visual_tokenizer.fields.ranges import Section


@dataclass(kw_only=True)
class AnnealedConfig(Section):
    """Fields of a temperature that falls over training."""

    temperature: Annotated[float, Gt(0)] = 1.0
    """τ at the first step; in units of squared distance where codes are chosen by distance."""

    final_temperature: Annotated[float, Gt(0)] = 1 / 16
    """τ after `anneal_steps`."""

    anneal_steps: Annotated[int, Ge(0)] = 150000
    """Steps over which τ falls along half a cosine."""

    def temperature_at(self, steps: Tensor) -> Tensor:
        """Return τ after `steps` training steps, a float32 scalar; nothing waits for the device."""
        return cosine_annealed(self.temperature, self.final_temperature, self.anneal_steps, steps)


@dataclass(kw_only=True)
class GumbelDrawConfig(AnnealedConfig):
    """Fields of codes that are drawn by Gumbel-softmax."""

    hard: bool = False
    """Let the decoder see the drawn code itself, with the relaxation's gradient (straight-through Gumbel-softmax)."""

    kl_weight: Annotated[float, Ge(0)] = 0.0
    """Factor on the mean over tokens of KL(softmax(logits) ‖ uniform) in nats. The dVAE's 6.6 weighs the sum over
    tokens per sub-pixel: 6.6 · N / (3HW) here."""

    kl_warmup_steps: Annotated[int, Ge(0)] = 5000
    """Steps over which that factor grows from 0."""

    def kl_loss(self, logits: Tensor, steps: Tensor) -> dict[str, Tensor]:
        """Return the weighted `kl_uniform` of (M, K) logits after `steps` training steps; nothing where it weighs 0."""
        if self.kl_weight == 0:
            return {}
        return {"kl_uniform": self.kl_weight * linear_warmup(self.kl_warmup_steps, steps) * kl_to_uniform(logits)}


def cosine_annealed(start: float, end: float, over_steps: int, steps: Tensor) -> Tensor:
    """Return a float32 scalar that goes from `start` to `end` along half a cosine over `over_steps`, and stays there.

    0 of them give `end` at once. `steps`, an int64 scalar, is never read on the host: nothing waits for the device.
    """
    return end + (start - end) * (1 + (linear_warmup(over_steps, steps) * math.pi).cos()) / 2


def linear_warmup(over_steps: int, steps: Tensor) -> Tensor:
    """Return a float32 scalar that goes from 0 to 1 over `over_steps`, and stays there; 1 at once if that is 0."""
    return (steps.float() / over_steps).clamp(max=1.0) if over_steps > 0 else steps.float() * 0 + 1


def gumbel_noise(tokens: int, codebook_size: int, like: Tensor) -> Tensor:
    """Return (tokens, codebook_size) draws of −log(−log u), on the device of `like`."""
    return -torch.empty(tokens, codebook_size, device=like.device, dtype=like.dtype).exponential_().log()


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Return the mean over tokens of KL(softmax(logits) ‖ uniform) in nats: (M, K) → scalar, 0 without tokens."""
    log_probabilities = logits.log_softmax(dim=1)
    negative_entropy = (log_probabilities.exp() * log_probabilities).sum(dim=1)
    return (negative_entropy + math.log(logits.shape[1])).sum() / max(logits.shape[0], 1)
