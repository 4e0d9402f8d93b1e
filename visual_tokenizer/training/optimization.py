"""Learning rate and weight decay of a training run."""

from __future__ import annotations

import copy
import math
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from visual_tokenizer.errors import UserError
from visual_tokenizer.quantizers.base import Quantizer
from visual_tokenizer.training.recipe import OptimizerSection


def learning_rate(section: OptimizerSection, step: int, max_steps: int) -> float:
    """Return the rate of the update from `step` to `step + 1`: a function of its arguments, so nothing is saved."""
    if step < section.warmup_steps:
        return section.learning_rate * (step + 1) / section.warmup_steps
    if section.schedule == "constant":
        return section.learning_rate
    progress = min((step - section.warmup_steps) / max(max_steps - 1 - section.warmup_steps, 1), 1.0)
    low = section.min_learning_rate_ratio
    return section.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2)


def decayed_names(module: nn.Module) -> set[str]:
    """Return the names of the parameters that weight decay is for: matrices and kernels called `…weight`.

    Norms, biases, embeddings, positions, queries and everything inside a quantizer are left out.
    """
    chosen = set()
    excluded = tuple(f"{name}." for name, part in module.named_modules() if isinstance(part, Quantizer | nn.Embedding))
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2 and name.endswith("weight") and not name.startswith(excluded):
            chosen.add(name)
    return chosen


def build_optimizer(module: nn.Module, section: OptimizerSection) -> torch.optim.AdamW:
    """Return AdamW over the trained parameters of `module`, with weight decay where it belongs."""
    decayed = decayed_names(module)
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in trained if name in decayed], "weight_decay": section.weight_decay},
        {"params": [p for name, p in trained if name not in decayed], "weight_decay": 0.0},
    ]
    is_on_gpu = any(parameter.is_cuda for _, parameter in trained)
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=section.learning_rate,
        betas=(section.betas[0], section.betas[1]),
        fused=is_on_gpu or None,
    )


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
