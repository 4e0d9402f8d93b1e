"""The decoder's hidden states after a few blocks are drawn to a frozen network's features (GigaTok).

Paper: GigaTok: Scaling Visual Tokenizers to 3 Billion Parameters for Autoregressive Image Generation (Xiong et al.,
2025), arXiv:2504.08736, section 3.2, after REPA (Yu et al., 2024), arXiv:2410.06940: the decoder's features after block
3 pass three layers with SiLU between and are compared, place by place, with DINOv2's by their cosine. What makes
larger tokenizers easier to model is that codes must tell the decoder what DINOv2 sees.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.convolution import tokens_from_map
from visual_tokenizer.losses._activation import Activation
from visual_tokenizer.losses._taught import Taught, TaughtConfig, resized_map
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.teacher import Teacher

STACKS = ("blocks", "layers")
"""Names under which decoders keep their sequence of blocks."""


@dataclass(kw_only=True)
class DecoderAlignmentConfig(TaughtConfig):
    """Fields of the alignment; the defaults are GigaTok's, but for the teacher, and `weight` is 0.5 there."""

    level: int = -1
    """Level of the teacher, 0 the finest and -1 the coarsest or last."""

    block: Annotated[int, Ge(1)] = 3
    """Block of the decoder, counted from 1, after which it is compared."""

    decoder_width: Annotated[int, Ge(1)] = 1024
    """Channels of the decoder's blocks."""


class DecoderAlignment(Taught):
    """1 − cos(head(hidden state), teacher), averaged over pictures and places of a square grid."""

    Config = DecoderAlignmentConfig

    def __init__(self, config: DecoderAlignmentConfig, teacher: Teacher | None = None) -> None:
        super().__init__(config, teacher)
        width = 4 * config.decoder_width
        self.head = nn.Sequential(
            nn.Linear(config.decoder_width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, self.target_width),
        )
        self.hidden = Activation()

    def watch(self, tokenizer: Any) -> None:
        """Watch the block.

        Raises:
            ConfigError: the decoder has no stack of so many blocks.
        """
        stacks = [
            part
            for name, part in tokenizer.decoder.named_modules()
            if name.rsplit(".", 1)[-1] in STACKS and isinstance(part, nn.ModuleList | nn.Sequential)
        ]
        if not stacks or len(stacks[0]) < self.config.block:
            has = f"{len(stacks[0])} blocks" if stacks else "no stack of blocks"
            raise ConfigError(f"block must be one of the decoder's, which has {has}, got {self.config.block}")
        self.hidden.watch(stacks[0][self.config.block - 1])

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean of 1 − cos, a float32 scalar in [0, 2]; gradients reach codes and decoder.

        Raises:
            ValueError: hidden states of another width, or not of a square grid.
        """
        hidden = self.hidden.take()
        hidden = tokens_from_map(hidden) if hidden.ndim == 4 else hidden
        side = math.isqrt(hidden.shape[1])
        if hidden.shape[2] != self.config.decoder_width or side * side != hidden.shape[1]:
            raise UserError(
                f"decoder_width must be {hidden.shape[2]}, the decoder's, on a square grid, got "
                f"{self.config.decoder_width} and {hidden.shape[1]} places"
            )
        target = resized_map(self.target(batch), (side, side)).flatten(2).transpose(1, 2)
        return 1 - F.cosine_similarity(self.head(hidden).float(), target, dim=2).mean()
