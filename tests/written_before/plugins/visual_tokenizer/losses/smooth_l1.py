"""Absolute error that is squared near 0 (Fast R-CNN, arXiv:1504.08083, eq. 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.losses.base import Loss, LossConfig
from visual_tokenizer.outputs import TokenizerOutput


@dataclass(kw_only=True)
class SmoothL1Config(LossConfig):
    """Fields of smooth L1."""

    beta: float = 0.5
    """Error below which it is squared; above 0."""

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, got {self.beta}")


class SmoothL1(Loss):
    """Averaged over every picture, channel and pixel."""

    Config = SmoothL1Config

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        return F.smooth_l1_loss(output.pixels.float(), batch["pixels"].float(), beta=self.config.beta)
