"""A transformer on the features of another network, in place of patches of pixels.

Paper: An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale (Dosovitskiy et al., 2021),
arXiv:2010.11929, section 3.1, "Hybrid Architecture": the embedding is applied to a feature map, whose places are the
patches of one pixel. With `patches: backbone` a frozen network lends what few pictures can't teach.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, rows_and_columns
from visual_tokenizer.layers.shape import TransformerShape
from visual_tokenizer.layers.transformer import Transformer, sinusoidal_positions


@dataclass(kw_only=True)
class HybridViTConfig(TransformerShape, EncoderConfig):
    """Fields of the hybrid; the defaults are a small transformer on a convolutional network."""

    width: Annotated[int, Ge(1), MultipleOf(4)] = 256
    """Channels of the transformer; a multiple of `heads`, and of 4: two sines and two cosines."""

    depth: Annotated[int, Ge(1)] = 4

    patches: EncoderConfig = field(default_factory=lambda: EncoderConfig.family.config({"type": "cnn"}))
    """The encoder whose latents are embedded; it gives rows and columns."""


class HybridViT(Encoder):
    """Features, linear embedding, positions, transformer."""

    Config = HybridViTConfig

    def __init__(self, config: HybridViTConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.patches: Encoder = EncoderConfig.family.build(config.patches, image_size=image_size)
        rows_and_columns(self.patches, image_size)
        self.embedding = nn.Linear(self.patches.width, config.width)
        self.transformer = Transformer(config.width, config.depth, config.heads)

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        return self.patches.token_grid(height, width)

    def forward(self, pixels: Tensor) -> Tensor:
        rows, columns = self.token_grid(*pixels.shape[2:])
        embedded = self.embedding(self.patches(pixels))
        positions = sinusoidal_positions(rows, columns, self.width, pixels.device)
        return self.transformer(embedded + positions.to(embedded.dtype))
