"""TiTok's decoder as its weights are published, after both stages of training.

Paper: An Image is Worth 32 Tokens for Reconstruction and Generation (Yu et al., 2024), arXiv:2406.07550, sections 3.2
and 3.3. Mask tokens read the latents; each then gives a distribution over the codes of MaskGIT's VQGAN, whose mean code
its decoder turns into pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.titok import CLIPTransformer, TiTokShape


@dataclass(kw_only=True)
class TiTokConfig(TiTokShape, DecoderConfig):
    """Fields of TiTok's decoder; the defaults are TiTok-L-32's."""

    proxy_codes: int = 1024
    """Codes of the tokenizer that draws the pixels; 2 or more."""

    pixel_decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig.family.config({"type": "maskgit"}))
    """What turns its codes into pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.proxy_codes < 2:
            raise ValueError(f"proxy_codes must be 2 or more, got {self.proxy_codes}")


class TiTok(Decoder):
    """Class token, mask tokens and latents in one transformer, then the mean proxy code of each position."""

    Config = TiTokConfig

    def __init__(self, config: TiTokConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        width = self.width = config.width
        if image_size % config.patch_size:
            raise ValueError(f"patch_size must divide the picture size {image_size}, got {config.patch_size}")
        side = image_size // config.patch_size
        self.grid = (side, side)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(1, width))
        self.positions = nn.Parameter(scale * torch.randn(side * side + 1, width))
        self.mask_token = nn.Parameter(scale * torch.randn(1, 1, width))
        self.latent_positions = nn.Parameter(scale * torch.randn(config.num_latents, width))
        self.transformer = CLIPTransformer(width, config.depth, config.heads)
        self.norm = nn.LayerNorm(width)
        self.to_logits = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, config.proxy_codes))
        self.pixel_decoder: Decoder = DecoderConfig.family.build(config.pixel_decoder, image_size=image_size)
        self.proxy_codebook = nn.Parameter(torch.randn(config.proxy_codes, self.pixel_decoder.width))

    @property
    def last_layer(self) -> nn.Parameter:
        return self.pixel_decoder.last_layer

    @property
    def last_layer(self) -> nn.Parameter:
        return self.pixel_decoder.last_layer

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        batch, positions = latents.shape[0], self.positions.shape[0]
        masks = self.mask_token.expand(batch, positions - 1, -1)
        sequence = torch.cat([self.class_embedding.expand(batch, 1, -1), masks], dim=1) + self.positions
        mixed = self.transformer(torch.cat([sequence, latents + self.latent_positions], dim=1))
        logits = self.to_logits(self.norm(mixed[:, 1:positions]))
        return self.pixel_decoder(logits.softmax(dim=-1) @ self.proxy_codebook, self.grid)

    def pixels(self, output: Tensor) -> Tensor:
        return self.pixel_decoder.pixels(output)
