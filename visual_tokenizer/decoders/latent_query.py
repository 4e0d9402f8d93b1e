"""One-dimensional tokens back to pixels: mask tokens on the patch grid read the latents through a transformer.

Paper: An Image is Worth 32 Tokens for Reconstruction and Generation (Yu et al., 2024), arXiv:2406.07550, section
3.2. With `patches: cnn` the grid is finished by a convolutional network, as in GigaTok (Xiong et al., 2025),
arXiv:2504.08736.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visual_tokenizer.decoders.base import DecoderConfig, GridDecoder, GridDecoderConfig
from visual_tokenizer.layers.transformer import Transformer, learned_positions


@dataclass(kw_only=True)
class LatentQueryConfig(GridDecoderConfig):
    """Fields of the latent-query decoder; the defaults are TiTok-S's widths."""


class LatentQuery(GridDecoder):
    """Mask tokens and latents in one transformer; the mask tokens become the picture."""

    Config = LatentQueryConfig

    def __init__(self, config: LatentQueryConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.mask_token = learned_positions(1, config.width)
        self.patch_positions = learned_positions(math.prod(self.grid), config.width)
        self.latent_positions = learned_positions(config.num_latents, config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.patches = DecoderConfig.family.build(config.patches, image_size=image_size)
        self.patch_projection = nn.Linear(config.width, self.patches.width)

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        masks = (self.mask_token + self.patch_positions).to(latents.dtype).expand(latents.shape[0], -1, -1)
        sequence = self.transformer(torch.cat([masks, latents + self.latent_positions], dim=1))
        return self.patches(self.patch_projection(sequence[:, : masks.shape[1]]), self.grid)
