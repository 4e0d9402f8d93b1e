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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.backbones.base import (
    NetworkHolder,
    check_layers,
    check_pixels,
    load_backbone,
    require_pictures,
    resize_shorter_side,
)
from visual_tokenizer.layers.positions import sinusoidal_positions
from visual_tokenizer.layers.transformer import Transformer
from visual_tokenizer.losses._code_channels import check_channels, code_channels
from visual_tokenizer.losses.base import Loss, LossConfig
from visual_tokenizer.outputs import TokenizerOutput


@dataclass(kw_only=True)
class FeatureDistillationConfig(LossConfig):
    """Fields of the distillation of a network's features."""

    network: str = "efficientnet_lite0"
    """Teacher: a file of `visual_tokenizer/backbones`."""

    network_weights: str | None = None
    """State dict of the teacher (`transformers_vision`: folder or name); null: that of the installed package."""

    level: int | None = None
    """Level of the teacher whose features each token predicts, 0 the finest; null: the embedding of the whole picture,
    which the mean over tokens predicts."""

    size: int | None = None
    """Pixels of the shorter side that the teacher sees; null: the embedding's own size, or pictures as they are."""

    channels: list[int] = field(default_factory=lambda: [0, 8])
    """First channel of the code that the head sees and the one after its last; [0, code_dim] for all."""

    width: int = 256
    """Channels of the head; a multiple of `heads` and of 4 (two sines and two cosines)."""

    depth: int = 1
    """Transformer blocks before the two layers; 0 or more. VQ-KD's is 1 or 3."""

    heads: int = 8
    """Attention heads; 1 or more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_channels(self.channels)
        if self.level is not None and self.level < 0:
            raise ValueError(f"level must be 0 or more, or null, got {self.level}")
        if self.size is not None and self.size < 32:
            raise ValueError(f"size must be 32 or more (a network's coarsest stride), or null, got {self.size}")
        if self.depth < 0:
            raise ValueError(f"depth must be 0 or more, got {self.depth}")
        if self.heads < 1:
            raise ValueError(f"heads must be 1 or more, got {self.heads}")
        if self.width < 1 or self.width % self.heads or self.width % 4:
            raise ValueError(f"width must be a multiple of heads ({self.heads}) and of 4, got {self.width}")


class FeatureDistillation(NetworkHolder, Loss):
    """1 − cos(head(codes), teacher), averaged over pictures and tokens.

    Tokens on a grid predict the teacher's map brought to that grid (bilinear, antialiased when it shrinks). Tokens
    without one, of a one-dimensional tokenizer or of several scales, predict together: the mean of what the head gives
    is compared with the mean of the map.
    """

    Config = FeatureDistillationConfig

    def __init__(self, config: FeatureDistillationConfig) -> None:
        super().__init__(config)
        network = load_backbone(config.network, config.network_weights)
        require_pictures(network)
        if config.level is not None:
            check_layers([config.level], network)
        self.hold(network)
        target = network.embedding_dim if config.level is None else network.feature_dims[config.level]
        self.projection = nn.Linear(config.channels[1] - config.channels[0], config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.head = nn.Sequential(nn.Linear(config.width, config.width), nn.Tanh(), nn.Linear(config.width, target))

    @torch.no_grad()
    def target(self, pixels: Tensor) -> Tensor:
        """Return the teacher's features, (B, C, h, w); h = w = 1 of an embedding."""
        check_pixels(pixels)
        level, size = self.config.level, self.config.size
        if level is None:
            return self.network.embedding(pixels, size)[..., None, None]
        resized = pixels if size is None else resize_shorter_side(pixels, size)
        return self.network.features(resized, level + 1)[level]

    def predict(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return what the head makes of (B, N, C) codes on a grid of N positions: (B, N, C of the teacher)."""
        hidden = self.projection(code_channels(codes, self.config.channels))
        hidden = hidden + sinusoidal_positions(*grid, self.config.width, codes.device).to(hidden.dtype)
        return self.head(self.transformer(hidden))

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean of 1 − cos, a float32 scalar in [0, 2]; gradients reach head, codes and encoder.

        Raises:
            ValueError: clips, or codes with fewer channels than `channels` ends at.
        """
        target = self.target(batch["pixels"]).float()
        grid = _grid(output)
        predicted = self.predict(output.codes, grid or (1, output.codes.shape[1])).float()
        if grid is None or self.config.level is None:
            pair = predicted.mean(1, keepdim=True), target.mean((2, 3))[:, None]
        else:
            pair = predicted, _resized(target, grid).flatten(2).transpose(1, 2)
        return 1 - F.cosine_similarity(*pair, dim=2).mean()


def _grid(output: TokenizerOutput) -> tuple[int, int] | None:
    """Return rows and columns of the codes, if their positions are a grid; several indices a position or not."""
    for sides in (output.indices.shape[1:], output.indices.shape[1:-1]):
        if len(sides) == 2 and math.prod(sides) == output.codes.shape[1]:
            return sides[0], sides[1]
    return None


def _resized(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    if tuple(maps.shape[2:]) == grid:
        return maps
    shrinks = maps.shape[2] > grid[0] or maps.shape[3] > grid[1]
    return F.interpolate(maps, grid, mode="bilinear", align_corners=False, antialias=shrinks)
