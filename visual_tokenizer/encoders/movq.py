"""The encoder of Emu3's vision tokenizer: VQGAN's network on every frame, then causal convolutions over time.

Papers: Emu3: Next-Token Prediction is All You Need (Wang et al., 2024), arXiv:2409.18869, section 2.2; MoVQ: Modulating
Quantized Vectors for High-Fidelity Image Generation (Zheng et al., 2022), arXiv:2209.09002. A picture is a clip of
`time_downsampling` equal frames, as in the published code; the network before the convolutions over time sees it once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, ResolutionError
from visual_tokenizer.layers.causal_convolution import ChunkCausalConv3d, TemporalResidualBlock
from visual_tokenizer.layers.convolution import map_from_tokens


def _published_frames() -> EncoderConfig:
    # Attention is at the coarsest level, which has 32 × 32 positions at 256 pixels.
    fields = {"channels": 256, "channel_multipliers": [1, 2, 2, 4], "attention_resolutions": [32], "latent_channels": 4}
    section: EncoderConfig = EncoderConfig.family.config({"type": "cnn", **fields})
    return section


@dataclass(kw_only=True)
class MoVQConfig(EncoderConfig):
    """Fields of the MoVQ encoder; the defaults are Emu3's, 8 × 8 pixels and 4 frames a token."""

    frames: EncoderConfig = field(default_factory=_published_frames)
    """The encoder of single frames; its latents have the channels of a code."""

    time_halvings: Annotated[int, Ge(0)] = 2
    """How often the number of frames is halved: a token stands for 2^time_halvings frames."""

    time_blocks: Annotated[int, Ge(0)] = 2
    """Residual blocks over time."""


class MoVQ(Encoder):
    """Frames by themselves, then time; the last convolution gives what is quantized."""

    Config = MoVQConfig
    latents_are_codes = True
    takes_video = True

    def __init__(self, config: MoVQConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.time_downsampling = 2**config.time_halvings
        self.frames = EncoderConfig.family.build(config.frames, image_size=image_size)
        channels = self.width = self.frames.width
        self.time_convs = nn.ModuleList(
            ChunkCausalConv3d(channels, channels, (4, 3, 3), time_stride=2) for _ in range(config.time_halvings)
        )
        self.time_blocks = nn.Sequential(*(TemporalResidualBlock(channels) for _ in range(config.time_blocks)))
        self.head = ChunkCausalConv3d(channels, channels, (3, 1, 1))

    def token_grid(self, height: int, width: int, frames: int = 0) -> tuple[int, ...]:
        of_frame: tuple[int, ...] = self.frames.token_grid(height, width)
        if not frames:
            return of_frame
        if frames % self.time_downsampling:
            raise ResolutionError(
                f"a clip must have a multiple of {self.time_downsampling} frames (the downsampling in time), "
                f"got {frames}"
            )
        return frames // self.time_downsampling, *of_frame

    def forward(self, pixels: Tensor) -> Tensor:
        grid = self.frames.token_grid(*pixels.shape[-2:])
        if pixels.ndim == 4:
            of_frame = map_from_tokens(self.frames(pixels), grid)
            hidden = of_frame.unsqueeze(2).expand(-1, -1, self.time_downsampling, -1, -1)
        else:
            of_frames = map_from_tokens(self.frames(pixels.transpose(1, 2).flatten(0, 1)), grid)
            hidden = of_frames.unflatten(0, (pixels.shape[0], -1)).transpose(1, 2)
        for convolution in self.time_convs:
            hidden = F.silu(convolution(hidden))
        return self.head(self.time_blocks(hidden)).flatten(2).transpose(1, 2)
