"""LaVIT's decoder: queries of a grid read a picture's tokens, however many they are; another decoder draws the grid.

Paper: Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization (Jin et al., 2023),
arXiv:2309.04669, section 3.1. There the queries become features of a frozen network (here the loss
`feature_reconstruction`), and a diffusion model draws from these. This is a stand-in for the diffusion model, trained
on the codes: within `probe` it shapes neither codes nor encoder, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.attention_shape import check_attention_shape
from visual_tokenizer.layers.code_reader import CodeReader


@dataclass(kw_only=True)
class LaVITConfig(DecoderConfig):
    """Fields of LaVIT's decoder; the defaults are those of the paper's decoder of features."""

    num_latents: int = 256
    """Most tokens of a picture, as in the encoder; 1 or more."""

    grid_size: int = 16
    """Side of the grid of queries, at the nominal picture size; 1 or more."""

    width: int = 1408
    """Channels of tokens and queries; a multiple of `heads`."""

    depth: int = 12
    """Blocks; 1 or more."""

    heads: int = 16
    """Attention heads; 1 or more."""

    patches: DecoderConfig = field(default_factory=lambda: DecoderConfig.family.config({"type": "patch"}))
    """The decoder that turns the grid into pixels."""

    def __post_init__(self) -> None:
        check_attention_shape(self, ("num_latents", "grid_size", "width", "depth", "heads"))


class LaVIT(Decoder):
    """A reader of codes, then another decoder on the grid."""

    Config = LaVITConfig
    takes_variable_length = True

    def __init__(self, config: LaVITConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.grid = (config.grid_size, config.grid_size)
        self.reader = CodeReader(config.num_latents, config.grid_size**2, config.width, config.depth, config.heads)
        self.patches: Decoder = DecoderConfig.family.build(config.patches, image_size=image_size)
        self.patch_projection = nn.Linear(config.width, self.patches.width)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.patches.last_layer

    def forward(self, latents: Tensor, grid: tuple[int, ...], present: Tensor | None = None) -> Tensor:
        return self.patches(self.patch_projection(self.reader(latents, present)), self.grid)

    def pixels(self, output: Tensor) -> Tensor:
        return self.patches.pixels(output)
