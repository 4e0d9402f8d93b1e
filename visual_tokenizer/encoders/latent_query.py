"""One-dimensional tokens: learned latent queries read a picture's patches through a transformer.

Paper: An Image is Worth 32 Tokens for Reconstruction and Generation (Yu et al., 2024), arXiv:2406.07550, section 3.2:
patch embeddings and K latent tokens are one sequence; after the ViT the K latents are kept. With `patches: cnn` the
patches are the features of a convolutional network, as in GigaTok: Scaling Visual Tokenizers to 3 Billion Parameters
(Xiong et al., 2025), arXiv:2504.08736, section 3.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visual_tokenizer.encoders.base import QueryEncoder, QueryEncoderConfig
from visual_tokenizer.layers.transformer import Transformer, learned_positions


@dataclass(kw_only=True)
class LatentQueryConfig(QueryEncoderConfig):
    """Fields of the latent-query encoder; the defaults are TiTok-S's widths, and `patch` is its own."""


class LatentQuery(QueryEncoder):
    """Patches and latent queries in one transformer; the queries are the latents."""

    Config = LatentQueryConfig

    def __init__(self, config: LatentQueryConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.patch_projection = nn.Linear(self.patches.width, config.width)
        self.patch_positions = learned_positions(math.prod(self.patch_grid), config.width)
        self.queries = learned_positions(config.num_latents, config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_projection(self.patches(pixels)) + self.patch_positions
        queries = self.queries.expand(pixels.shape[0], -1, -1)
        sequence = self.transformer(torch.cat([patches, queries.to(patches.dtype)], dim=1))
        return sequence[:, patches.shape[1] :]
