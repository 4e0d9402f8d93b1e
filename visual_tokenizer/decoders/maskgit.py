"""The decoder of MaskGIT's VQGAN.

Paper: MaskGIT: Masked Generative Image Transformer (Chang et al., 2022), arXiv:2202.04200, section 3.1: VQGAN's decoder
without attention. It gives pixels in [0, 1], which are mapped to [-1, 1]. Where a block changes the number of channels
its shortcut projects the residual, not the input, as in the published code.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.biasless import BiaslessResidualBlock
from visual_tokenizer.layers.convolution import Upsample, group_norm, map_from_tokens
from visual_tokenizer.layers.shape import GroupedLevelShape


@dataclass(kw_only=True)
class MaskGITConfig(GroupedLevelShape, DecoderConfig):
    """Fields of the MaskGIT decoder; the defaults are the published ones of 16 × 16 pixels a token."""


class MaskGIT(Decoder):
    """Blocks in the middle, then levels with nearest-neighbour doubling between."""

    Config = MaskGITConfig
    last_weight = "head.weight"

    def __init__(self, config: MaskGITConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.latent_channels
        channels = config.level_channels[-1]
        self.stem = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        layers: list[nn.Module] = [
            BiaslessResidualBlock(channels, channels, groups=config.groups) for _ in range(config.blocks_per_level)
        ]
        for level, leaving in reversed(list(enumerate(config.level_channels))):
            for _ in range(config.blocks_per_level):
                block = BiaslessResidualBlock(channels, leaving, groups=config.groups, shortcut_of="residual")
                layers.append(block)
                channels = leaving
            if level > 0:
                layers.append(Upsample(channels))
        self.layers = nn.Sequential(*layers)
        self.norm = group_norm(channels, config.groups)
        self.head = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        hidden = self.layers(self.stem(map_from_tokens(latents, grid)))
        return 2 * self.head(F.silu(self.norm(hidden))) - 1
