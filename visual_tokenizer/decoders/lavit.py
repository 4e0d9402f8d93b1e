"""LaVIT's decoder: queries of a grid read a picture's tokens, however many they are; another decoder draws the grid.

Paper: Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization (Jin et al., 2023),
arXiv:2309.04669, section 3.1. There the queries become features of a frozen network (here the loss
`feature_reconstruction`), and a diffusion model draws from these. This is a stand-in for the diffusion model, trained
on the codes: within `probe` it shapes neither codes nor encoder, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from visual_tokenizer.decoders.base import Decoder, DecoderConfig, GridDecoder, GridDecoderConfig
from visual_tokenizer.layers.code_reader import CodeReader


@dataclass(kw_only=True)
class LaVITConfig(GridDecoderConfig):
    """Fields of LaVIT's decoder; the defaults are those of the paper's decoder of features."""

    num_latents: Annotated[int, Ge(1)] = 256
    width: Annotated[int, Ge(1)] = 1408
    depth: Annotated[int, Ge(1)] = 12
    heads: Annotated[int, Ge(1)] = 16


class LaVIT(GridDecoder):
    """A reader of codes, then another decoder on the grid."""

    Config = LaVITConfig
    takes_variable_length = True

    def __init__(self, config: LaVITConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.reader = CodeReader(config.num_latents, config.grid_size**2, config.width, config.depth, config.heads)
        self.patches: Decoder = DecoderConfig.family.build(config.patches, image_size=image_size)
        self.patch_projection = nn.Linear(config.width, self.patches.width)

    def forward(self, latents: Tensor, grid: tuple[int, ...], present: Tensor | None = None) -> Tensor:
        return self.patches(self.patch_projection(self.reader(latents, present)), self.grid)
