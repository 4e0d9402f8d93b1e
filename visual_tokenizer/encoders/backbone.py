"""A frozen network's features, place by place: what tokenizers of meaning begin with.

Papers: LaVIT (Jin et al., 2023), arXiv:2309.04669, section 3.1, and SEED (Ge et al., 2023), arXiv:2307.08041, section
3.1, whose tokenizers stand on a frozen EVA-CLIP; any file of `visual_tokenizer/backbones` will do. The network's
weights are not saved with the tokenizer: whoever loads it needs them too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from visual_tokenizer.backbones.base import (
    NetworkFields,
    NetworkHolder,
    check_layers,
    load_backbone,
    require_pictures,
    resize_shorter_side,
)
from visual_tokenizer.encoders.base import Encoder, EncoderConfig, ResolutionError
from visual_tokenizer.layers.convolution import tokens_from_map


@dataclass(kw_only=True)
class BackboneEncoderConfig(NetworkFields, EncoderConfig):
    """Fields of the frozen network."""

    level: Annotated[int, Ge(0)] = 3
    """Level of the network whose features are the latents, 0 the finest."""

    size: Annotated[int, Ge(1)] | None = None
    """Pixels of the shorter side that the network sees; null: pictures as they are."""


class BackboneEncoder(NetworkHolder, Encoder):
    """One level of a network that never learns."""

    Config = BackboneEncoderConfig

    def __init__(self, config: BackboneEncoderConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        with torch.device("cpu"):  # a tokenizer is built without storage before its own weights are read
            network = load_backbone(config.network, config.weights)
        require_pictures(network)
        check_layers([config.level], network)
        self.hold(network)
        self.width = network.feature_dims[config.level]
        self._grids: dict[tuple[int, int], tuple[int, ...]] = {}

    def _features(self, pixels: Tensor) -> Tensor:
        size, level = self.config.size, self.config.level
        seen = pixels if size is None else resize_shorter_side(pixels, size)
        return self.network.features(seen, level + 1)[level]

    @torch.no_grad()
    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        if height < 1 or width < 1:
            raise ResolutionError(f"height and width must be 1 or more, got {height} × {width}")
        if (height, width) not in self._grids:
            weight = next(self.network.parameters())
            blank = torch.zeros(1, 3, height, width, dtype=weight.dtype, device=weight.device)
            self._grids[height, width] = tuple(self._features(blank).shape[2:])
        return self._grids[height, width]

    def forward(self, pixels: Tensor) -> Tensor:
        return tokens_from_map(self._features(pixels)).to(pixels.dtype)
