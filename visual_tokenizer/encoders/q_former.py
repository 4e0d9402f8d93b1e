"""GigaTok's encoder: a Q-Former turns convolutional features into one-dimensional tokens, coarse ones first.

Paper: GigaTok: Scaling Visual Tokenizers to 3 Billion Parameters for Autoregressive Image Generation (Xiong et al.,
2025), arXiv:2504.08736, section 3.1, and the authors' code. The queries begin as averages of the features over the
whole picture (twice), its two halves side by side, its four quarters and so on, so that 2^n tokens are all levels down
to 2^(n−1) blocks; they pass a linear map, then blocks of self-attention, cross-attention to the features and
feed-forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.encoders.base import EncoderConfig, QueryEncoder, QueryEncoderConfig, rows_and_columns
from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.attention import QueryBlock
from visual_tokenizer.layers.convolution import map_from_tokens, tokens_from_map
from visual_tokenizer.layers.transformer import learned_positions


@dataclass(kw_only=True)
class QFormerConfig(QueryEncoderConfig):
    """Fields of the Q-Former encoder; the defaults are GigaTok's small encoder's."""

    num_latents: Annotated[int, Ge(2)] = 256
    """Tokens of a picture; a power of two, whose blocks divide the grid of features."""

    depth: Annotated[int, Ge(1)] = 6

    patches: EncoderConfig = field(default_factory=lambda: EncoderConfig.family.config({"type": "cnn"}))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_latents & (self.num_latents - 1):
            raise UserError(f"num_latents must be a power of two, got {self.num_latents}")

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Rows and columns of blocks of each group of queries, coarse to fine: (1, 1) twice, (1, 2), (2, 2) …"""
        doublings = range(self.num_latents.bit_length() - 1)
        return [(1, 1), *((2 ** (number // 2), 2 ** ((number + 1) // 2)) for number in doublings)]


class QFormer(QueryEncoder):
    """Averages at many levels as queries, which read the features block by block."""

    Config = QFormerConfig

    def __init__(self, config: QFormerConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        height, width = self.grid = rows_and_columns(self.patches, image_size)
        rows, columns = config.levels[-1]
        if height % rows or width % columns:
            raise UserError(
                f"num_latents {config.num_latents} needs features in a multiple of {rows} rows and {columns} columns, "
                f"got {height} × {width}"
            )
        self.features_norm = nn.LayerNorm(self.patches.width)
        self.patch_projection = nn.Linear(self.patches.width, config.width)
        self.patch_positions = learned_positions(height * width, config.width)
        self.query_projection = nn.Linear(config.width, config.width)
        self.query_positions = learned_positions(config.num_latents, config.width)
        self.blocks = nn.ModuleList(QueryBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def averages(self, features: Tensor) -> Tensor:
        """Return the means over each level's blocks, row by row: (B, h·w, C) → (B, num_latents, C)."""
        feature_map = map_from_tokens(features, self.grid)
        sides = [(self.grid[0] // rows, self.grid[1] // columns) for rows, columns in self.config.levels]
        return torch.cat([tokens_from_map(F.avg_pool2d(feature_map, side)) for side in sides], dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.patch_projection(self.features_norm(self.patches(pixels)))
        queries = self.query_projection(self.averages(features))
        for block in self.blocks:
            queries = block(queries, features, self.query_positions, self.patch_positions)
        return self.norm(queries)
