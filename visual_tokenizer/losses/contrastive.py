"""Codes are pulled to their captions and pushed from others', by a softmax over the batch (CLIP).

Papers: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021), arXiv:2103.00020,
section 2.3 and figure 3; on the codes of a visual tokenizer: VILA-U (Wu et al., 2024), arXiv:2409.04429, section 3.1,
and SEED (Ge et al., 2023), arXiv:2307.08041, section 3.2, with the last token for the picture. The text encoder is
frozen, as VILA-U's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn

from visual_tokenizer.losses._caption_alignment import CaptionAlignment, CaptionAlignmentConfig, softmax_loss
from visual_tokenizer.outputs import TokenizerOutput


@dataclass(kw_only=True)
class ContrastiveConfig(CaptionAlignmentConfig):
    """Fields of CLIP's loss."""

    temperature: Annotated[float, Interval(ge=0.01, le=1)] = 0.07
    """First value of the learned temperature that cosines are divided by; it is stopped at 0.01."""


class Contrastive(CaptionAlignment):
    """The mean of the cross-entropies of captions given pictures and of pictures given captions."""

    Config = ContrastiveConfig

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__(config)
        self.log_scale = nn.Parameter(torch.full((), -math.log(config.temperature)))

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the loss over the pictures of all processes in nats, a float32 scalar.

        Raises:
            ValueError: the batch has no captions, or not one a picture; a `position` or `channels` out of range.
        """
        scores = self.log_scale.float().exp().clamp(max=100) * self.cosines(output, batch)
        return softmax_loss(scores)
