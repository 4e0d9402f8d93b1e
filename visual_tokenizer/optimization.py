"""Learning rate and weight decay of a training run."""

from __future__ import annotations

import math

import torch
from torch import nn

from visual_tokenizer.quantizers.base import Quantizer
from visual_tokenizer.training_recipe import OptimizerSection


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
