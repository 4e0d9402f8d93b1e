"""Each pair of a picture's codes and a caption is judged by itself: theirs or not (SigLIP).

Paper: Sigmoid Loss for Language Image Pre-Training (Zhai et al., 2023), arXiv:2303.15343, section 3.2 and algorithm 1.
On the codes of a visual tokenizer as `contrastive`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.losses._caption_alignment import CaptionAlignment, CaptionAlignmentConfig
from visual_tokenizer.outputs import TokenizerOutput


@dataclass(kw_only=True)
class SigmoidContrastiveConfig(CaptionAlignmentConfig):
    """Fields of SigLIP's loss."""

    scale: Annotated[float, Gt(0)] = 10.0
    """First value of the learned factor on cosines."""

    bias: float = -10.0
    """First value of the learned bias; it makes up for most pairs being no match."""


class SigmoidContrastive(CaptionAlignment):
    """−log σ(±(scale · cos + bias)), summed over captions and averaged over pictures; + for a picture's own caption."""

    Config = SigmoidContrastiveConfig

    def __init__(self, config: SigmoidContrastiveConfig) -> None:
        super().__init__(config)
        self.log_scale = nn.Parameter(torch.full((), math.log(config.scale)))
        self.bias = nn.Parameter(torch.full((), config.bias))

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss over the pairs of all processes, a float32 scalar."""
        scores = self.log_scale.float().exp() * self.cosines(output, batch) + self.bias.float()
        count = scores.shape[0]
        signs = 2 * torch.eye(count, device=scores.device) - 1
        return -F.logsigmoid(signs * scores).sum() / count
