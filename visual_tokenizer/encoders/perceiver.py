"""The Perceiver resampler: learned latents read a picture's features by cross-attention.

Papers: Flamingo: a Visual Language Model for Few-Shot Learning (Alayrac et al., 2022), arXiv:2204.14198, section 3.1
and appendix A.1.1 (in each block the keys and values are the features and the latents themselves); Perceiver IO
(Jaegle et al., 2021), arXiv:2107.14795. Cost grows linearly with the features, unlike `latent_query`'s.
Positions of the features are learned ones, added once before the first block.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, ResolutionError
from visual_tokenizer.layers.attention import ResamplerBlock
from visual_tokenizer.layers.attention_shape import check_attention_shape
from visual_tokenizer.layers.transformer import learned_positions


@dataclass(kw_only=True)
class PerceiverConfig(EncoderConfig):
    """Fields of the Perceiver resampler."""

    num_latents: int = 64
    """Tokens of a picture; 1 or more."""

    width: int = 512
    """Channels of latents and features; a multiple of `heads`."""

    depth: int = 6
    """Blocks of cross-attention and feed-forward; 1 or more."""

    heads: int = 8
    """Attention heads; 1 or more."""

    patches: EncoderConfig = field(default_factory=lambda: EncoderConfig.family.config({"type": "patch"}))
    """The encoder whose latents are the features."""

    def __post_init__(self) -> None:
        check_attention_shape(self, ("num_latents", "width", "depth", "heads"))


class Perceiver(Encoder):
    """Learned latents, which read the features block by block."""

    Config = PerceiverConfig

    def __init__(self, config: PerceiverConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.patches = EncoderConfig.family.build(config.patches, image_size=image_size)
        height, width = self.patches.token_grid(image_size, image_size)
        self.patch_projection = nn.Linear(self.patches.width, config.width)
        self.patch_positions = learned_positions(height * width, config.width)
        self.queries = learned_positions(config.num_latents, config.width)
        self.blocks = nn.ModuleList(ResamplerBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        if (height, width) != (self.image_size, self.image_size):
            raise ResolutionError(
                f"this encoder takes {self.image_size} × {self.image_size} pixels only (its position embeddings are "
                f"for that size), got {height} × {width}"
            )
        return (self.config.num_latents,)

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.patch_projection(self.patches(pixels))
        features = features + self.patch_positions.to(features.dtype)
        latents = self.queries.to(features.dtype).expand(pixels.shape[0], -1, -1)
        for block in self.blocks:
            latents = block(latents, features)
        return self.norm(latents)
