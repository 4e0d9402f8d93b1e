"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from visual_tokenizer.errors import UserError

Model = TypeVar("Model", bound=nn.Module)


class WeightAverage(Generic[Model]):
    """Keeps `module`, a copy of `model` whose trained weights are `w̄ ← d·w̄ + (1 − d)·w`.

    The decay grows with the steps, `d = min(decay, (1 + step) / (10 + step))`, so that a short run is not held back
    by its first weights. What no gradient trains (running statistics, codebooks that are averages themselves) is
    copied.

    Args:
        model: the model in training.
        decay: weight of the past; in (0, 1).
    """

    def __init__(self, model: Model, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(f"decay must be in (0, 1), got {decay}")
        self.decay = decay
        self.module: Model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: Model, step: int) -> None:
        """Take in the weights after optimiser step `step` (1 is the first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages: list[Tensor] = []
        weights: list[Tensor] = []
        fixed: list[Tensor] = []
        sources: list[Tensor] = []
        for average, weight in zip(self.module.parameters(), model.parameters(), strict=True):
            (averages if weight.requires_grad else fixed).append(average)
            (weights if weight.requires_grad else sources).append(weight)
        fixed += list(self.module.buffers())
        sources += list(model.buffers())
        torch._foreach_lerp_(averages, weights, 1 - decay)
        if fixed:
            torch._foreach_copy_(fixed, sources)
