"""Codes predict the features of a frozen network (VQ-KD).

Paper: BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers (Peng et al., 2022), arXiv:2208.06366,
section 2.2: a few transformer blocks and a head of two layers with tanh between, on the straight-through codes; the
loss is 1 − cos with the teacher at each token. Others teach a part of the code only: TokenFlow (Qu et al., 2024),
arXiv:2412.03069, section 3.1, its semantic codebook; FQGAN (Bai et al., 2024), arXiv:2411.16681, section 3.3, one of
its heads; ImageFolder (Li et al., 2024), arXiv:2410.01756, section 3.3, its semantic branch.

Departs from VQ-KD in that positions are sines and cosines, so that any grid will do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, MultipleOf
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.shape import TransformerShape
from visual_tokenizer.layers.transformer import Transformer, sinusoidal_positions
from visual_tokenizer.losses._code_channels import Channels, code_channels
from visual_tokenizer.losses._taught import Taught, TaughtConfig, resized_map
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.teacher import Teacher


@dataclass(kw_only=True)
class FeatureDistillationConfig(TransformerShape, TaughtConfig):
    """Fields of the distillation of a network's features: at a level by each token, else by the mean over tokens."""

    channels: Channels = field(default_factory=lambda: [0, 8])
    """First channel of the code that the head sees and the one after its last; [0, code_dim] for all."""

    width: Annotated[int, Ge(1), MultipleOf(4)] = 256
    """Channels of the head; a multiple of `heads`, and of 4: two sines and two cosines."""

    depth: Annotated[int, Ge(0)] = 1
    """Transformer blocks before the two layers. VQ-KD's is 1 or 3."""


class FeatureDistillation(Taught):
    """1 − cos(head(codes), teacher), averaged over pictures and tokens.

    Tokens on a grid predict the teacher's map brought to that grid (bilinear, antialiased when it shrinks). Tokens
    without one, of a one-dimensional tokenizer or of several scales, predict together: the mean of what the head gives
    is compared with the mean of the map.
    """

    Config = FeatureDistillationConfig

    def __init__(self, config: FeatureDistillationConfig, teacher: Teacher | None = None) -> None:
        super().__init__(config, teacher)
        self.projection = nn.Linear(config.channels[1] - config.channels[0], config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.head = nn.Sequential(
            nn.Linear(config.width, config.width), nn.Tanh(), nn.Linear(config.width, self.target_width)
        )

    def predict(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return what the head makes of (B, N, C) codes on a grid of N positions: (B, N, C of the teacher)."""
        hidden = self.projection(code_channels(codes, self.config.channels))
        hidden = hidden + sinusoidal_positions(*grid, self.config.width, codes.device).to(hidden.dtype)
        return self.head(self.transformer(hidden))

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean of 1 − cos, a float32 scalar in [0, 2]; gradients reach head, codes and encoder.

        Raises:
            ValueError: clips, codes with fewer channels than `channels` ends at, or pictures of different lengths.
        """
        if output.present is not None:
            raise UserError(
                "feature_distillation is for pictures of equally many tokens: take feature_reconstruction, whose "
                "queries read any number"
            )
        target = self.target(batch)
        grid = _grid(output)
        predicted = self.predict(output.codes, grid or (1, output.codes.shape[1])).float()
        if grid is None or self.level is None:
            pair = predicted.mean(1, keepdim=True), target.mean((2, 3))[:, None]
        else:
            pair = predicted, resized_map(target, grid).flatten(2).transpose(1, 2)
        return 1 - F.cosine_similarity(*pair, dim=2).mean()


def _grid(output: TokenizerOutput) -> tuple[int, int] | None:
    """Return rows and columns of the codes, if their positions are a grid; several indices a position or not."""
    for sides in (output.indices.shape[1:], output.indices.shape[1:-1]):
        if len(sides) == 2 and math.prod(sides) == output.codes.shape[1]:
            return sides[0], sides[1]
    return None
