"""TATS's time-agnostic encoder: a 3-D VQGAN padded with copies of the border, so that no frame knows where it is.

Paper: Long Video Generation with Time-Agnostic VQGAN and Time-Sensitive Transformer (Ge et al., 2022),
arXiv:2204.03638, section 3.2. Clips only, not causal.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, even_grid
from visual_tokenizer.layers.clip import as_clip, tokens_from_clip
from visual_tokenizer.layers.convolution import group_norm
from visual_tokenizer.layers.same_convolution import SameConv3d, strides_of
from visual_tokenizer.layers.tats import ReplicateResidualBlock, TATSShape


@dataclass(kw_only=True)
class TATSConfig(TATSShape, EncoderConfig):
    """Fields of TATS's encoder; the defaults are the published ones."""


class TATS(Encoder):
    """A convolution of stride 2 and a residual block each halving."""

    Config = TATSConfig
    takes_video = True

    def __init__(self, config: TATSConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        channels = config.channels
        layers: list[nn.Module] = [SameConv3d(3, channels, 3, padding="replicate")]
        for stride in strides_of(config.downsampling):
            layers.append(SameConv3d(channels, 2 * channels, 4, stride, padding="replicate"))
            channels *= 2
            layers.append(ReplicateResidualBlock(channels, config.groups))
        self.layers = nn.Sequential(*layers)
        self.norm = group_norm(channels, config.groups)
        self.width = channels

    def token_grid(self, height: int, width: int, frames: int = 0) -> tuple[int, ...]:
        return even_grid(height, width, frames, self.config.downsampling)

    def forward(self, pixels: Tensor) -> Tensor:
        return tokens_from_clip(F.silu(self.norm(self.layers(as_clip(pixels)))))
