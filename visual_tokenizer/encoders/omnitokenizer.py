"""The encoder of OmniTokenizer: a transformer over space, then one over time, for pictures and clips alike.

Paper: OmniTokenizer: A Joint Image-Video Tokenizer for Visual Generation (Wang et al., 2024), arXiv:2406.09399,
section 3.1.

What differs from the published code: the positional convolution of the temporal blocks sees the tokens in their place
(there a reshape mixes space and time, which lets later frames in), the biases of attention over time are applied on
every path, and patches are embedded at their full size, without a pooling behind the transformers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, causal_grid, picture_grid
from visual_tokenizer.layers.clip import as_clip
from visual_tokenizer.layers.space_time_transformer import OmniShape, spatial_transformer, temporal_transformer


@dataclass(kw_only=True)
class OmniTokenizerConfig(OmniShape, EncoderConfig):
    """Fields of the OmniTokenizer encoder; the defaults are the published ones."""


def _embedding(values: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(values), nn.Linear(values, width), nn.LayerNorm(width))


class OmniTokenizer(Encoder):
    """The first frame and the rest have their own patch embeddings; all other weights are shared."""

    Config = OmniTokenizerConfig
    takes_video = True

    def __init__(self, config: OmniTokenizerConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        values = 3 * config.patch_size**2
        self.first_embedding = _embedding(values, config.width)
        self.rest_embedding = _embedding(values * config.temporal_patch_size, config.width)
        self.space = spatial_transformer(config)
        self.time = temporal_transformer(config)

    def token_grid(self, height: int, width: int, frames: int = 0) -> tuple[int, ...]:
        config, side = self.config, self.config.patch_size
        if "window" in config.spatial_blocks:
            picture_grid(height, width, (side * config.window_size, side * config.window_size))
        return causal_grid(height, width, frames, (config.temporal_patch_size, side, side))

    def forward(self, pixels: Tensor) -> Tensor:
        clip, side = as_clip(pixels), self.config.patch_size
        first = rearrange(clip[:, :, :1], "b c t (h p) (w q) -> b t h w (c p q)", p=side, q=side)
        tokens = self.first_embedding(first)
        if clip.shape[2] > 1:
            frames = self.config.temporal_patch_size
            layout = "b c (t n) (h p) (w q) -> b t h w (c n p q)"
            rest = self.rest_embedding(rearrange(clip[:, :, 1:], layout, n=frames, p=side, q=side))
            tokens = torch.cat([tokens, rest], dim=1)
        return self.time(self.space(tokens)).flatten(1, 3)
