"""The convolutional decoder of DALL·E's dVAE: it gives a distribution over pixels.

Paper: Zero-Shot Text-to-Image Generation (Ramesh et al., 2021), arXiv:2102.12092, appendices A.1 and A.3. The published
network begins with a 1 × 1 convolution of a one-hot vector, which picks a column of its kernel and adds its bias: that
is a code of `code_channels` numbers, and `VisualTokenizer.from_codes` after the quantizer's codebook. Codes that are
mixed by weights of sum 1, as in training, get the bias once as well.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.convolution import map_from_tokens
from visual_tokenizer.layers.dvae import GROUPS, DVAEShape, convolution, group
from visual_tokenizer.layers.logit_laplace import from_support


@dataclass(kw_only=True)
class DVAEConfig(DVAEShape, DecoderConfig):
    """Fields of the dVAE decoder; the defaults are the published network's."""

    code_channels: Annotated[int, Ge(1)] = 128
    """Channels that enter the first block."""


class DVAE(Decoder):
    """Four groups of blocks with nearest-neighbour doubling between, ReLU, a 1 × 1 convolution.

    `forward` gives (B, 6, H, W): means and log-scales of the logit-Laplace distributions of red, green and blue.
    """

    Config = DVAEConfig
    last_weight = "blocks.output.conv.weight"

    def __init__(self, config: DVAEConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.code_channels
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        channels = config.code_channels
        for number in range(GROUPS):
            leaving = 2 ** (GROUPS - 1 - number) * config.channels
            upsample = nn.Upsample(scale_factor=2, mode="nearest") if number < GROUPS - 1 else None
            blocks[f"group_{number + 1}"] = group(channels, leaving, config, (1, 3, 3, 3), upsample)
            channels = leaving
        blocks["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=convolution(channels, 6, 1)))
        self.blocks = nn.Sequential(blocks)

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        return self.blocks(map_from_tokens(latents, grid))

    def pixels(self, output: Tensor) -> Tensor:
        """Return the medians of the distributions (B, 6, H, W) as pixels (B, 3, H, W), in (-1.25, 1.25)."""
        return from_support(output[:, :3].sigmoid())
