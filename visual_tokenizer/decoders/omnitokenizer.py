"""The decoder of OmniTokenizer: a transformer over time, then one over space.

Paper: OmniTokenizer: A Joint Image-Video Tokenizer for Visual Generation (Wang et al., 2024), arXiv:2406.09399,
section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Len
from einops import rearrange
from torch import Tensor, nn

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.clip import as_asked
from visual_tokenizer.layers.space_time_transformer import (
    OmniShape,
    SpatialBlock,
    spatial_transformer,
    temporal_transformer,
)


@dataclass(kw_only=True)
class OmniTokenizerConfig(OmniShape, DecoderConfig):
    """Fields of the OmniTokenizer decoder; the defaults are the published ones."""

    spatial_blocks: Annotated[list[SpatialBlock], Len(1)] = field(default_factory=lambda: ["full"] * 4)


class OmniTokenizer(Decoder):
    """The first frame and the rest have their own projections to pixels; all other weights are shared."""

    Config = OmniTokenizerConfig
    takes_video = True
    last_weight = "first_head.weight"  # pictures and clips have it in common

    def __init__(self, config: OmniTokenizerConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.time = temporal_transformer(config)
        self.space = spatial_transformer(config)
        values = 3 * config.patch_size**2
        self.first_head = nn.Linear(config.width, values)
        self.rest_head = nn.Linear(config.width, values * config.temporal_patch_size)

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        sides = (1, *grid) if len(grid) == 2 else grid
        hidden = self.space(self.time(latents.unflatten(1, sides)))
        side, frames = self.config.patch_size, self.config.temporal_patch_size
        first = self.first_head(hidden[:, :1])
        clip = rearrange(first, "b t h w (c p q) -> b c t (h p) (w q)", p=side, q=side)
        if hidden.shape[1] > 1:
            layout = "b t h w (c n p q) -> b c (t n) (h p) (w q)"
            rest = rearrange(self.rest_head(hidden[:, 1:]), layout, n=frames, p=side, q=side)
            clip = torch.cat([clip, rest], dim=2)
        return as_asked(clip, grid)
