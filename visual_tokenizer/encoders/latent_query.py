"""One-dimensional tokens: learned latent queries read a picture's patches through a transformer.

Paper: An Image is Worth 32 Tokens for Reconstruction and Generation (Yu et al., 2024), arXiv:2406.07550, section 3.2:
patch embeddings and K latent tokens are one sequence; after the ViT the K latents are kept. With `patches: cnn` the
patches are the features of a convolutional network, as in GigaTok: Scaling Visual Tokenizers to 3 Billion Parameters
(Xiong et al., 2025), arXiv:2504.08736, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, ResolutionError
from visual_tokenizer.layers.attention_shape import check_attention_shape
from visual_tokenizer.layers.transformer import Transformer, learned_positions


@dataclass(kw_only=True)
class LatentQueryConfig(EncoderConfig):
    """Fields of the latent-query encoder; the defaults are TiTok-S's widths."""

    num_latents: int = 32
    """Tokens of a picture; 1 or more."""

    width: int = 512
    """Channels of the transformer; a multiple of `heads`."""

    depth: int = 8
    """Transformer blocks; 1 or more."""

    heads: int = 8
    """Attention heads; 1 or more."""

    patches: EncoderConfig = field(default_factory=lambda: EncoderConfig.family.config({"type": "patch"}))
    """The encoder whose latents are the patch tokens: `patch` is TiTok's own, `cnn` the hybrid."""

    def __post_init__(self) -> None:
        check_attention_shape(self, ("num_latents", "width", "depth", "heads"))


class LatentQuery(Encoder):
    """Patches and latent queries in one transformer; the queries are the latents."""

    Config = LatentQueryConfig

    def __init__(self, config: LatentQueryConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.patches = EncoderConfig.family.build(config.patches, image_size=image_size)
        height, width = self.patches.token_grid(image_size, image_size)
        self.patch_projection = nn.Linear(self.patches.width, config.width)
        self.patch_positions = learned_positions(height * width, config.width)
        self.queries = learned_positions(config.num_latents, config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        if (height, width) != (self.image_size, self.image_size):
            raise ResolutionError(
                f"this encoder takes {self.image_size} × {self.image_size} pixels only (its position embeddings are "
                f"for that size), got {height} × {width}"
            )
        return (self.config.num_latents,)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_projection(self.patches(pixels)) + self.patch_positions
        queries = self.queries.expand(pixels.shape[0], -1, -1)
        sequence = self.transformer(torch.cat([patches, queries.to(patches.dtype)], dim=1))
        return sequence[:, patches.shape[1] :]
