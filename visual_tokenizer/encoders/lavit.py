"""LaVIT's dynamic tokenizer: as many tokens as a picture needs, at the places that matter.

Paper: Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization (Jin et al., 2023),
arXiv:2309.04669, section 3.1. A selector keeps or drops each place of the features of `patches`; a merger lets the kept
ones gather what the dropped ones know; two layers with tanh between lead to the codes, of which the second is
`VisualTokenizer.to_codes`. The loss `keep_ratio` says how many are kept, `feature_reconstruction` what they must tell;
with `patches: backbone` the features are a frozen network's, as in the paper.

Departs from it in positions on the features (sines, so large that codes tell their places from the first step), which
those of `patches` need not know, and in one width for features and merger, with a linear map between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, ResolutionError
from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.attention_shape import check_attention_shape
from visual_tokenizer.layers.positions import sinusoidal_positions
from visual_tokenizer.layers.token_merger import TokenMerger
from visual_tokenizer.layers.token_selector import TokenSelector, pack
from visual_tokenizer.outputs import Selection


@dataclass(kw_only=True)
class LaVITConfig(EncoderConfig):
    """Fields of LaVIT's encoder; the defaults are the paper's."""

    width: int = 1408
    """Channels of selector and merger; a multiple of `heads` and of 4."""

    depth: int = 12
    """Blocks of the merger; 1 or more."""

    heads: int = 16
    """Attention heads; 1 or more."""

    temperature: float = 1.0
    """τ of the Gumbel-softmax by which the selector learns; above 0."""

    patches: EncoderConfig = field(default_factory=lambda: EncoderConfig.family.config({"type": "vit"}))
    """The encoder whose latents are the features."""

    def __post_init__(self) -> None:
        check_attention_shape(self, ("width", "depth", "heads"), has_sines=True)
        if not self.temperature > 0:
            raise UserError(f"temperature must be above 0, got {self.temperature}")


class LaVIT(Encoder):
    """Selector, merger, and the kept tokens in front."""

    Config = LaVITConfig
    has_variable_length = True

    def __init__(self, config: LaVITConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.patches: Encoder = EncoderConfig.family.build(config.patches, image_size=image_size)
        grid = self.patches.token_grid(image_size, image_size)
        if len(grid) != 2:
            raise UserError(f"patches must be an encoder of rows and columns, got a token grid of {grid}")
        self.grid = (grid[0], grid[1])
        self.patch_projection = nn.Linear(self.patches.width, config.width)
        self.selector = TokenSelector(config.width, config.temperature)
        self.merger = TokenMerger(config.width, config.depth, config.heads)
        self.head = nn.Sequential(nn.Linear(config.width, config.width), nn.Tanh())

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        if (height, width) != (self.image_size, self.image_size):
            raise ResolutionError(
                f"this encoder takes {self.image_size} × {self.image_size} pixels only (its position embeddings are "
                f"for that size), got {height} × {width}"
            )
        return (math.prod(self.grid),)

    def decide(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features (B, P, width) of each place, row by row, and which are kept, (B, P)."""
        features = self.patch_projection(self.patches(pixels))
        features = features + sinusoidal_positions(*self.grid, self.width, features.device).to(features.dtype)
        return features, self.selector(features)

    def forward(self, pixels: Tensor) -> Any:
        """Return a `Selection`."""
        features, decisions = self.decide(pixels)
        packed, present = pack(self.merger(features, decisions), decisions)
        return Selection(self.head(packed), present, decisions)
