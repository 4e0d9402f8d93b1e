"""The norm of the last layer's output, whose growth tells of divergence long before the loss does.

Chameleon's runs showed it (arXiv:2405.09818, section 2.3): modalities compete through the softmax by growing norms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmlm.losses.head_loss import own_class


def final_norm(model: Any) -> nn.Module | None:
    """Return the norm between the last layer and the head of a causal LM, or of a peft model of it; None: not found."""
    whole: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    inner = getattr(whole, str(getattr(whole, "base_model_prefix", "")), None)
    found = [] if inner is None else [child for child in inner.children() if "Norm" in own_class(child).__name__]
    return found[-1] if found else None


class OutputNorms:
    """Keeps the norms of what the last layer gave in the newest training pass, before the final norm levels them.

    `model` is as it is before it is wrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self._newest: Tensor | None = None
        module = final_norm(model)
        if module is not None:
            module.register_forward_pre_hook(self._look)

    @torch.compiler.disable
    def _look(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module.training:
            with torch.no_grad():
                self._newest = torch.linalg.vector_norm(inputs[0], dim=-1, dtype=torch.float32)

    def take(self) -> Tensor | None:
        """Return the norms of the newest pass, one a token in the order of its input, and forget them."""
        newest, self._newest = self._newest, None
        return newest
