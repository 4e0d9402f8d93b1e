"""Mean absolute error between pixels and their reconstruction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.losses.base import Loss, LossConfig
from visual_tokenizer.outputs import TokenizerOutput


@dataclass(kw_only=True)
class L1Config(LossConfig):
    """L1 has no field of its own."""


class L1(Loss):
    """Absolute difference, averaged over every picture, channel and pixel."""

    Config = L1Config

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return mean |reconstruction - pixels|, a float32 scalar; 2 at most for pixels in [-1, 1]."""
        return F.l1_loss(output.pixels.float(), batch["pixels"].float())
