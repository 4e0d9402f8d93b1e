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
from typing import Annotated, Any

from annotated_types import Ge, Gt, MultipleOf
from torch import Tensor, nn

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, rows_and_columns
from visual_tokenizer.layers.shape import TransformerShape
from visual_tokenizer.layers.token_merger import TokenMerger
from visual_tokenizer.layers.token_selector import TokenSelector, pack
from visual_tokenizer.layers.transformer import sinusoidal_positions
from visual_tokenizer.outputs import Selection


@dataclass(kw_only=True)
class LaVITConfig(TransformerShape, EncoderConfig):
    """Fields of LaVIT's encoder; the defaults are the paper's."""

    width: Annotated[int, Ge(1), MultipleOf(4)] = 1408
    """Channels of selector and merger; a multiple of `heads`, and of 4: two sines and two cosines."""

    depth: Annotated[int, Ge(1)] = 12
    """Blocks of the merger."""

    heads: Annotated[int, Ge(1)] = 16

    temperature: Annotated[float, Gt(0)] = 1.0
    """τ of the Gumbel-softmax by which the selector learns."""

    patches: EncoderConfig = field(default_factory=lambda: EncoderConfig.family.config({"type": "vit"}))
    """The encoder whose latents are the features."""


class LaVIT(Encoder):
    """Selector, merger, and the kept tokens in front."""

    Config = LaVITConfig
    has_variable_length = True

    def __init__(self, config: LaVITConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.patches: Encoder = EncoderConfig.family.build(config.patches, image_size=image_size)
        self.grid = rows_and_columns(self.patches, image_size)
        self.patch_projection = nn.Linear(self.patches.width, config.width)
        self.selector = TokenSelector(config.width, config.temperature)
        self.merger = TokenMerger(config.width, config.depth, config.heads)
        self.head = nn.Sequential(nn.Linear(config.width, config.width), nn.Tanh())

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        self.require_nominal_size(height, width)
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
