"""The convolutional encoder of DALL·E's dVAE.

Paper: Zero-Shot Text-to-Image Generation (Ramesh et al., 2021), arXiv:2102.12092, appendix A.1. Pixels are mapped to
[0.1, 0.9] first. The published network's last 1 × 1 convolution, from these latents to logits over the codes, is the
`gumbel` quantizer's `to_logits`: it needs `code_dim` 8 · `channels` (and identity maps to it) for the logits to be as
free as the paper's, and a smaller `code_dim` bounds their rank.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, picture_grid
from visual_tokenizer.layers.convolution import tokens_from_map
from visual_tokenizer.layers.dvae import DOWNSAMPLING, GROUPS, DVAEShape, convolution, group
from visual_tokenizer.layers.logit_laplace import to_support


@dataclass(kw_only=True)
class DVAEConfig(DVAEShape, EncoderConfig):
    """Fields of the dVAE encoder; the defaults are the published network's."""


class DVAE(Encoder):
    """A 7 × 7 convolution, four groups of blocks with max-pooling between, ReLU."""

    Config = DVAEConfig

    def __init__(self, config: DVAEConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = 2 ** (GROUPS - 1) * config.channels
        blocks: OrderedDict[str, nn.Module] = OrderedDict(input=convolution(3, config.channels, 7))
        channels = config.channels
        for number in range(GROUPS):
            leaving = 2**number * config.channels
            pool = nn.MaxPool2d(2) if number < GROUPS - 1 else None
            blocks[f"group_{number + 1}"] = group(channels, leaving, config, (3, 3, 3, 1), pool)
            channels = leaving
        blocks["relu"] = nn.ReLU()
        self.blocks = nn.Sequential(blocks)

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        return picture_grid(height, width, (DOWNSAMPLING, DOWNSAMPLING))

    def forward(self, pixels: Tensor) -> Tensor:
        return tokens_from_map(self.blocks(to_support(pixels)))
