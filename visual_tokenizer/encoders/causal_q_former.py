"""SEED's encoder: learned queries read a picture one after another, so that tokens have an order, as words have.

Paper: Planting a SEED of Vision in Large Language Model (Ge et al., 2023), arXiv:2307.08041, section 3.1. The queries
attend causally to one another and freely to the features of `patches`. What comes out is quantized; the losses
`contrastive` (on the last token) and `feature_distillation` give it meaning.

Departs from it in that the blocks are pre-norm, not BERT's, all of them read the features, not every second, and are
trained from scratch, as `patches` is (BLIP-2's frozen ViT-g in the paper).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, ResolutionError
from visual_tokenizer.layers.attention_shape import check_attention_shape
from visual_tokenizer.layers.causal_query import CausalQueryBlock
from visual_tokenizer.layers.transformer import learned_positions


@dataclass(kw_only=True)
class CausalQFormerConfig(EncoderConfig):
    """Fields of the causal Q-Former; the defaults are SEED's."""

    num_latents: int = 32
    """Tokens of a picture; 1 or more."""

    width: int = 768
    """Channels of queries and features; a multiple of `heads`."""

    depth: int = 12
    """Blocks; 1 or more."""

    heads: int = 12
    """Attention heads; 1 or more."""

    patches: EncoderConfig = field(default_factory=lambda: EncoderConfig.family.config({"type": "vit"}))
    """The encoder whose latents are the features."""

    def __post_init__(self) -> None:
        check_attention_shape(self, ("num_latents", "width", "depth", "heads"))


class CausalQFormer(Encoder):
    """Token i depends on the picture and on queries 0…i."""

    Config = CausalQFormerConfig

    def __init__(self, config: CausalQFormerConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.patches: Encoder = EncoderConfig.family.build(config.patches, image_size=image_size)
        positions = math.prod(self.patches.token_grid(image_size, image_size))
        self.patch_projection = nn.Linear(self.patches.width, config.width)
        self.patch_positions = learned_positions(positions, config.width)
        self.features_norm = nn.LayerNorm(config.width)
        self.queries = learned_positions(config.num_latents, config.width)
        self.blocks = nn.ModuleList(CausalQueryBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        if (height, width) != (self.image_size, self.image_size):
            raise ResolutionError(
                f"this encoder takes {self.image_size} × {self.image_size} pixels only (its position embeddings are "
                f"for that size), got {height} × {width}"
            )
        return (self.config.num_latents,)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.features_norm(self.patch_projection(self.patches(pixels)) + self.patch_positions)
        queries = self.queries.expand(pixels.shape[0], -1, -1)
        for block in self.blocks:
            queries = block(queries, features)
        return self.norm(queries)
