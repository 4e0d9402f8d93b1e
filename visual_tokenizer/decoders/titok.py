"""TiTok's decoder as its weights are published.

Paper: An Image is Worth 32 Tokens for Reconstruction and Generation (Yu et al., 2024), arXiv:2406.07550, sections 3.2
and 3.3. Mask tokens read the latents; each then gives a distribution over the codes of MaskGIT's VQGAN, whose mean code
its decoder turns into pixels (`proxy_codes`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from visual_tokenizer.decoders.base import Decoder, DecoderConfig, OuterDecoder
from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.titok import CLIPTransformer, TiTokShape


def _maskgit_proxy() -> DecoderConfig:
    section: DecoderConfig = DecoderConfig.family.config(
        {"type": "proxy_codes", "width": 1024, "codebook_size": 1024, "proxy": {"type": "maskgit"}, "trained": True}
    )
    return section


@dataclass(kw_only=True)
class TiTokConfig(TiTokShape, DecoderConfig):
    """Fields of TiTok's decoder; the defaults are TiTok-L-32's."""

    patches: DecoderConfig = field(default_factory=_maskgit_proxy)
    """What turns the grid into pixels: by way of a proxy's codes as published, or another decoder, in one stage."""


class TiTok(OuterDecoder):
    """Class token, mask tokens and latents in one transformer; the mask tokens become the picture."""

    Config = TiTokConfig

    def __init__(self, config: TiTokConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        width = self.width = config.width
        if image_size % config.patch_size:
            raise UserError(f"patch_size must divide the picture size {image_size}, got {config.patch_size}")
        side = image_size // config.patch_size
        self.grid = (side, side)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(1, width))
        self.positions = nn.Parameter(scale * torch.randn(side * side + 1, width))
        self.mask_token = nn.Parameter(scale * torch.randn(1, 1, width))
        self.latent_positions = nn.Parameter(scale * torch.randn(config.num_latents, width))
        self.transformer = CLIPTransformer(width, config.depth, config.heads)
        self.norm = nn.LayerNorm(width)
        self.patches: Decoder = DecoderConfig.family.build(config.patches, image_size=image_size)
        if self.patches.width != width:
            raise UserError(f"patches must take the width of the transformer, {width}, got {self.patches.width}")

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        batch, positions = latents.shape[0], self.positions.shape[0]
        masks = self.mask_token.expand(batch, positions - 1, -1)
        sequence = torch.cat([self.class_embedding.expand(batch, 1, -1), masks], dim=1) + self.positions
        mixed = self.transformer(torch.cat([sequence, latents + self.latent_positions], dim=1))
        return self.patches(self.norm(mixed[:, 1:positions]), self.grid)
