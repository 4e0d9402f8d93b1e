"""How large a share of its places a picture keeps.

Paper: Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization (Jin et al., 2023),
arXiv:2309.04669, section 3.1: (ρ − mean of the decisions)², with ρ = 1/3 and a weight of 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval
from torch import Tensor

from visual_tokenizer.errors import UserError
from visual_tokenizer.losses.base import Loss, LossConfig
from visual_tokenizer.outputs import TokenizerOutput


@dataclass(kw_only=True)
class KeepRatioConfig(LossConfig):
    """Fields of the loss on the share of kept places."""

    ratio: Annotated[float, Interval(gt=0, lt=1)] = 1 / 3
    """Share ρ of a picture's places that is aimed at."""


class KeepRatio(Loss):
    """(ρ − kept share)² of each picture, averaged over pictures."""

    Config = KeepRatioConfig

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss; its gradient reaches the selector through the decisions.

        Raises:
            ValueError: an encoder that selects nothing.
        """
        if output.decisions is None:
            raise UserError("keep_ratio is for an encoder that selects places (lavit); take it out of losses")
        return (output.decisions.float().mean(1) - self.config.ratio).square().mean()
