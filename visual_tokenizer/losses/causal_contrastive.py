"""SEED's first stage: the last of the encoder's causal queries is pulled to the caption, before anything is quantized.

Paper: Planting a SEED of Vision in Large Language Model (Ge et al., 2023), arXiv:2307.08041, section 3.2, stage I: a
contrastive loss between the final causal embedding and the caption's text embedding. It looks at what the encoder
gives, not at codes: `contrastive` with `position: -1` is its form on codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from visual_tokenizer.losses._activation import Activation
from visual_tokenizer.losses._caption_alignment import SoftmaxAlignment, SoftmaxAlignmentConfig
from visual_tokenizer.losses._code_channels import code_channels
from visual_tokenizer.outputs import TokenizerOutput


@dataclass(kw_only=True)
class CausalContrastiveConfig(SoftmaxAlignmentConfig):
    """Fields of the loss; `channels` are the encoder's, not the code's."""

    position: int | None = -1
    """Token that stands for the picture; -1 is the last, the only one that has seen all queries."""


class CausalContrastive(SoftmaxAlignment):
    """CLIP's loss on one of the encoder's latents."""

    Config = CausalContrastiveConfig

    def __init__(self, config: CausalContrastiveConfig) -> None:
        super().__init__(config)
        self.latents = Activation()

    def watch(self, tokenizer: Any) -> None:
        self.latents.watch(tokenizer.encoder)

    def vectors(self, output: TokenizerOutput) -> Tensor:
        return code_channels(self.latents.take(), self.config.channels)
