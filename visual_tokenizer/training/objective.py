"""A tokenizer together with the losses it is trained for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from visual_tokenizer.losses.base import Loss, LossConfig
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.teacher import Teacher


class ObjectiveOutput(NamedTuple):
    """What one pass of a tokenizer and its losses gives."""

    loss: Tensor
    """Scalar with gradient: all terms."""
    reconstruction: Tensor
    """Scalar with gradient: the weighted losses of the recipe, without the quantizer's."""
    pixels: Tensor
    """(B, 3, [T,] H, W) reconstruction with gradient, about [-1, 1]."""
    values: dict[str, Tensor]
    """Scalars without gradient: each weighted term as `loss/…`, measures as `codebook/…`."""


def build_losses(sections: Sequence[LossConfig], teacher: Teacher | None) -> dict[str, Loss]:
    """Build a recipe's losses; those that name no network of their own learn from `teacher`, if there is one.

    Raises:
        ConfigError: a loss does not fit the network that it learns from.
    """
    losses = {}
    for section in sections:
        context = {"teacher": teacher} if section.wants_teacher else {}
        try:
            losses[section.type] = LossConfig.family.build(section, **context)
        except ValueError as error:
            raise ConfigError(f"losses: {section.type}: {error}") from error
    return losses


class Objective(nn.Module):
    """One module, so that parameters which a loss may have are trained, wrapped and saved with the tokenizer's."""

    def __init__(self, tokenizer: VisualTokenizer, losses: Mapping[str, Loss]) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.losses = nn.ModuleDict(dict(losses))
        for loss in losses.values():
            loss.watch(tokenizer)
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=False)

    def begin_step(self, step: int) -> None:
        """Say which step comes, 0 the first: weights may follow a schedule. It is not part of the state."""
        self.steps.fill_(step)

    def weight(self, name: str) -> float | Tensor:
        """Return what loss `name` weighs in this step."""
        config: Any = self.losses[name].config
        if config.schedule is None:
            return float(config.weight)
        return config.schedule.weight(config.weight, self.steps)

    def forward(self, batch: Mapping[str, Any]) -> ObjectiveOutput:
        """Reconstruct a batch and judge it.

        Args:
            batch: with `pixels` (B, 3, [T,] H, W) in [-1, 1]; losses may look at more.
        """
        output = self.tokenizer(batch["pixels"])
        terms = {name: self.weight(name) * loss(output, batch) for name, loss in self.losses.items()}
        reconstruction = torch.stack([term.float() for term in terms.values()]).sum()
        terms |= {f"quantizer_{name}": loss for name, loss in output.losses.items()}
        values = {f"loss/{name}": term.detach() for name, term in terms.items()}
        values |= {f"codebook/{name}": value.detach() for name, value in output.metrics.items()}
        total = torch.stack([term.float() for term in terms.values()]).sum()
        return ObjectiveOutput(total, reconstruction, output.pixels, values)
