"""What every frozen text encoder has in common: losses compare pictures with captions through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class TextEncoderConfig(PartConfig, package="visual_tokenizer.text_encoders"):
    """Fields that every text encoder has."""

    weights: str | None = None
    """Folder of a transformers model with its tokenizer, or its name on the hub; null: that of an installed package,
    where there is one."""

    max_length: Annotated[int, Ge(2)] = 256
    """Tokens after which a text is cut; a model that has fewer positions cuts earlier."""


class TextEncoder(nn.Module):
    """A pretrained text network that never learns and always runs in evaluation mode."""

    Config: ClassVar[type[TextEncoderConfig]]
    embedding_dim: int
    """Length of an embedding."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config: Any = config
        super().train(False)

    def train(self, mode: bool = True) -> TextEncoder:
        """Stay in evaluation mode whatever `mode` says."""
        return super().train(False)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return one vector a text, (B, embedding_dim) float32 without gradient, on the device of the weights."""
        raise NotImplementedError


def mean_of_words(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the hidden states (B, L, C) at the tokens where `mask` (B, L) is 1: (B, C) float32."""
    weights = mask[..., None].float()
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


def without_gradient(module: nn.Module) -> nn.Module:
    """Return `module` in float32 and evaluation mode, its parameters frozen."""
    return module.to(torch.float32).eval().requires_grad_(False)


PART = TextEncoder
