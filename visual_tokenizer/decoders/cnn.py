"""The convolutional decoder of VQGAN.

Paper: Taming Transformers for High-Resolution Image Synthesis (Esser et al., 2021), arXiv:2012.09841, appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.convolution import (
    ResidualBlock,
    SpatialAttention,
    group_norm,
    map_from_tokens,
    unfold_patches,
    upward_layers,
)
from visual_tokenizer.layers.shape import CNNShape


@dataclass(kw_only=True)
class CNNConfig(CNNShape, DecoderConfig):
    """Fields of the CNN decoder; the defaults are VQGAN's at an upsampling of 16."""


class CNN(Decoder):
    """The encoder's mirror, with one residual block more a level."""

    Config = CNNConfig
    last_weight = "head.weight"

    def __init__(self, config: CNNConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.latent_channels
        self.stem = nn.Conv2d(config.latent_channels, config.level_channels[-1], 3, padding=1)
        block = partial(ResidualBlock, groups=config.groups, dropout=config.dropout)
        attention = partial(SpatialAttention, groups=config.groups)
        self.layers = nn.Sequential(*upward_layers(config, image_size, block, attention))
        self.norm = group_norm(config.level_channels[0], config.groups)
        self.head = nn.Conv2d(config.level_channels[0], 3 * config.patch_area, 3, padding=1)

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        hidden = self.layers(self.stem(map_from_tokens(latents, grid)))
        return unfold_patches(self.head(F.silu(self.norm(hidden))), self.config.patch_size)
