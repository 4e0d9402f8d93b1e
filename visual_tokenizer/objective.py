"""A tokenizer together with the losses it is trained for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from visual_tokenizer.losses.base import Loss
from visual_tokenizer.modeling import VisualTokenizer


class Objective(nn.Module):
    """One module, so that parameters which a loss may have are trained, wrapped and saved with the tokenizer's."""

    def __init__(self, tokenizer: VisualTokenizer, losses: Mapping[str, Loss]) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.losses = nn.ModuleDict(dict(losses))
        self.weights = {name: float(loss.config.weight) for name, loss in losses.items()}

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return scalars: `loss`, and without gradients its weighted terms `loss/…` and measures `codebook/…`.

        Args:
            batch: with `pixels` (B, 3, H, W) in [-1, 1]; losses may look at more.
        """
        output = self.tokenizer(batch["pixels"])
        terms = {name: self.weights[name] * loss(output, batch) for name, loss in self.losses.items()}
        terms |= {f"quantizer_{name}": loss for name, loss in output.losses.items()}
        values = {f"loss/{name}": term.detach() for name, term in terms.items()}
        values |= {f"codebook/{name}": value.detach() for name, value in output.metrics.items()}
        return {"loss": torch.stack([term.float() for term in terms.values()]).sum(), **values}
