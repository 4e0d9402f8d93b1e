"""A tokenizer together with the losses it is trained for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from visual_tokenizer.losses.base import Loss
from visual_tokenizer.modeling import VisualTokenizer


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


class Objective(nn.Module):
    """One module, so that parameters which a loss may have are trained, wrapped and saved with the tokenizer's."""

    def __init__(self, tokenizer: VisualTokenizer, losses: Mapping[str, Loss]) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.losses = nn.ModuleDict(dict(losses))
        self.weights = {name: float(loss.config.weight) for name, loss in losses.items()}

    def forward(self, batch: Mapping[str, Any]) -> ObjectiveOutput:
        """Reconstruct a batch and judge it.

        Args:
            batch: with `pixels` (B, 3, [T,] H, W) in [-1, 1]; losses may look at more.
        """
        output = self.tokenizer(batch["pixels"])
        terms = {name: self.weights[name] * loss(output, batch) for name, loss in self.losses.items()}
        reconstruction = torch.stack([term.float() for term in terms.values()]).sum()
        terms |= {f"quantizer_{name}": loss for name, loss in output.losses.items()}
        values = {f"loss/{name}": term.detach() for name, term in terms.items()}
        values |= {f"codebook/{name}": value.detach() for name, value in output.metrics.items()}
        total = torch.stack([term.float() for term in terms.values()]).sum()
        return ObjectiveOutput(total, reconstruction, output.pixels, values)
