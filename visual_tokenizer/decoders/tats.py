"""TATS's decoder: transposed 3-D convolutions padded with copies of the border.

Paper: Long Video Generation with Time-Agnostic VQGAN and Time-Sensitive Transformer (Ge et al., 2022),
arXiv:2204.03638, section 3.2. Not causal.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.clip import as_asked, clip_from_tokens
from visual_tokenizer.layers.convolution import group_norm
from visual_tokenizer.layers.same_convolution import SameConv3d, SameConvTranspose3d, strides_of
from visual_tokenizer.layers.tats import ReplicateResidualBlock, TATSShape


@dataclass(kw_only=True)
class TATSConfig(TATSShape, DecoderConfig):
    """Fields of TATS's decoder; the defaults are the published ones."""


class TATS(Decoder):
    """A transposed convolution of stride 2 and two residual blocks each doubling."""

    Config = TATSConfig
    takes_video = True
    last_weight = "head.conv.weight"

    def __init__(self, config: TATSConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        strides = strides_of(config.downsampling)
        self.width = channels = config.channels * 2 ** len(strides)
        self.norm = group_norm(channels, config.groups)
        layers: list[nn.Module] = []
        for level, stride in enumerate(strides):
            out_channels = config.channels * 2 ** (len(strides) - level)
            layers.append(SameConvTranspose3d(channels, out_channels, 4, stride, padding="replicate"))
            channels = out_channels
            layers += [ReplicateResidualBlock(channels, config.groups) for _ in range(2)]
        self.layers = nn.Sequential(*layers)
        self.head = SameConv3d(channels, 3, 3, padding="replicate")

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        hidden = F.silu(self.norm(clip_from_tokens(latents, grid)))
        return as_asked(self.head(self.layers(hidden)), grid)
