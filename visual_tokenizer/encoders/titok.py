"""TiTok's encoder as its weights are published.

Paper: An Image is Worth 32 Tokens for Reconstruction and Generation (Yu et al., 2024), arXiv:2406.07550, section 3.2,
in the details of bytedance/1d-tokenizer that the paper leaves out: a class token, a norm before the first block, pixels
in [0, 1], and, in the published two-stage models, latents whose channels and positions were mixed up by a reshape.
`latent_query` is the paper's own form, for training from scratch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visual_tokenizer.encoders.base import Encoder, EncoderConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.convolution import tokens_from_map
from visual_tokenizer.layers.titok import CLIPTransformer, TiTokShape


@dataclass(kw_only=True)
class TiTokConfig(TiTokShape, EncoderConfig):
    """Fields of TiTok's encoder; the defaults are TiTok-L-32's."""

    reshapes_latents: bool = True
    """Whether the (num_latents, width) latents of a picture are read as (width, num_latents) before they are mapped to
    codes, without being transposed: so the two-stage models were trained (`is_legacy`)."""


class TiTok(Encoder):
    """Class token, patches and latent tokens in one transformer; the latent tokens are kept."""

    Config = TiTokConfig

    def __init__(self, config: TiTokConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        width = self.width = config.width
        if image_size % config.patch_size:
            raise UserError(f"patch_size must divide the picture size {image_size}, got {config.patch_size}")
        patches = (image_size // config.patch_size) ** 2
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(1, width))
        self.positions = nn.Parameter(scale * torch.randn(patches + 1, width))
        self.latents = nn.Parameter(scale * torch.randn(config.num_latents, width))
        self.latent_positions = nn.Parameter(scale * torch.randn(config.num_latents, width))
        self.transformer = CLIPTransformer(width, config.depth, config.heads)
        self.norm = nn.LayerNorm(width)

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        self.require_nominal_size(height, width)
        return (self.config.num_latents,)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = tokens_from_map(self.patch_embedding((pixels + 1) / 2))
        batch = patches.shape[0]
        sequence = torch.cat([self.class_embedding.expand(batch, 1, -1), patches], dim=1) + self.positions
        latents = (self.latents + self.latent_positions).expand(batch, -1, -1)
        mixed = self.transformer(torch.cat([sequence, latents], dim=1))
        kept = self.norm(mixed[:, -self.config.num_latents :])
        if not self.config.reshapes_latents:
            return kept
        return kept.reshape(batch, self.width, self.config.num_latents).transpose(1, 2)
