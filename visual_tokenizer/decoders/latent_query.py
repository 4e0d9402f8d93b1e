"""One-dimensional tokens back to pixels: mask tokens on the patch grid read the latents through a transformer.

Paper: An Image is Worth 32 Tokens for Reconstruction and Generation (Yu et al., 2024), arXiv:2406.07550, section
3.2. With
`patches: cnn` the grid is finished by a convolutional network, as in GigaTok (Xiong et al., 2025), arXiv:2504.08736.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.attention_shape import check_attention_shape
from visual_tokenizer.layers.transformer import Transformer, learned_positions


@dataclass(kw_only=True)
class LatentQueryConfig(DecoderConfig):
    """Fields of the latent-query decoder; the defaults are TiTok-S's widths."""

    num_latents: int = 32
    """Tokens of a picture, as in the encoder; 1 or more."""

    grid_size: int = 16
    """Side of the patch grid in positions, at the nominal picture size; 1 or more."""

    width: int = 512
    """Channels of the transformer; a multiple of `heads`."""

    depth: int = 8
    """Transformer blocks; 1 or more."""

    heads: int = 8
    """Attention heads; 1 or more."""

    patches: DecoderConfig = field(default_factory=lambda: DecoderConfig.family.config({"type": "patch"}))
    """The decoder that turns the grid into pixels: `patch` is linear, `cnn` the hybrid."""

    def __post_init__(self) -> None:
        check_attention_shape(self, ("num_latents", "grid_size", "width", "depth", "heads"))


class LatentQuery(Decoder):
    """Mask tokens and latents in one transformer; the mask tokens become the picture."""

    Config = LatentQueryConfig

    def __init__(self, config: LatentQueryConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.grid = (config.grid_size, config.grid_size)
        self.mask_token = learned_positions(1, config.width)
        self.patch_positions = learned_positions(math.prod(self.grid), config.width)
        self.latent_positions = learned_positions(config.num_latents, config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)
        self.patches = DecoderConfig.family.build(config.patches, image_size=image_size)
        self.patch_projection = nn.Linear(config.width, self.patches.width)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.patches.last_layer

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        masks = (self.mask_token + self.patch_positions).to(latents.dtype).expand(latents.shape[0], -1, -1)
        sequence = self.transformer(torch.cat([masks, latents + self.latent_positions], dim=1))
        return self.patches(self.patch_projection(sequence[:, : masks.shape[1]]), self.grid)

    def pixels(self, output: Tensor) -> Tensor:
        return self.patches.pixels(output)
