"""The decoder of Emu3's vision tokenizer: causal convolutions over time, then VQGAN's decoder modulated by the codes.

Papers: MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation (Zheng et al., 2022), arXiv:2209.09002,
section 3.2; Emu3: Next-Token Prediction is All You Need (Wang et al., 2024), arXiv:2409.18869, section 2.2. The
convolutions over time see the mapped and the plain codes as two clips of one batch, as the published code has it. Of a
picture only the first frame is computed, which is all that the published code keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge, Len
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.causal_convolution import ChunkCausalConv3d, TemporalResidualBlock
from visual_tokenizer.layers.convolution import unfold_patches, upward_layers
from visual_tokenizer.layers.shape import CNNShape
from visual_tokenizer.layers.spatial_norm import (
    ModulatedAttention,
    ModulatedResidualBlock,
    ModulatedSequential,
    SpatialNorm,
)


@dataclass(kw_only=True)
class MoVQConfig(CNNShape, DecoderConfig):
    """Fields of the MoVQ decoder; the defaults are Emu3's. `latent_channels` are those of a code."""

    channels: Annotated[int, Ge(1)] = 256
    channel_multipliers: Annotated[list[Annotated[int, Ge(1)]], Len(1)] = field(default_factory=lambda: [1, 2, 2, 4])
    attention_resolutions: list[Annotated[int, Ge(1)]] = field(default_factory=lambda: [32])

    latent_channels: Annotated[int, Ge(1)] = 4
    """Channels of a code."""

    time_halvings: Annotated[int, Ge(0)] = 2
    """How often the number of frames is doubled: a token stands for 2^time_halvings frames."""

    time_blocks: Annotated[int, Ge(0)] = 2
    """Residual blocks over time."""


class MoVQ(Decoder):
    """Time first, then each frame, every norm modulated by the codes of its frame."""

    Config = MoVQConfig
    latents_are_codes = True
    takes_video = True
    last_weight = "head.weight"

    def __init__(self, config: MoVQConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        width = self.width = config.latent_channels
        self.stem = ChunkCausalConv3d(width, width, (3, 1, 1))
        self.time_blocks = nn.Sequential(*(TemporalResidualBlock(width) for _ in range(config.time_blocks)))
        self.time_convs = nn.ModuleList(ChunkCausalConv3d(width, width, (3, 3, 3)) for _ in range(config.time_halvings))
        self.frame_stem = nn.Conv2d(width, config.level_channels[-1], 3, padding=1)
        block = partial(ModulatedResidualBlock, code_channels=width, groups=config.groups, dropout=config.dropout)
        attention = partial(ModulatedAttention, code_channels=width, groups=config.groups)
        self.layers = ModulatedSequential(upward_layers(config, image_size, block, attention))
        self.norm = SpatialNorm(config.level_channels[0], width, groups=config.groups)
        self.head = nn.Conv2d(config.level_channels[0], 3 * config.patch_area, 3, padding=1)

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        is_picture = len(grid) == 2
        codes = latents.transpose(1, 2).unflatten(2, (1, *grid) if is_picture else grid)
        both = self.time_blocks(torch.cat([self.stem(codes), codes]))
        for convolution in self.time_convs:
            # The first frame depends on the first alone, so that a picture needs no second.
            both = F.silu(convolution(both if is_picture else both.repeat_interleave(2, dim=2)))
        of_frames = both.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        mapped, plain = of_frames.chunk(2)
        hidden = self.layers(self.frame_stem(mapped), plain)
        output = unfold_patches(self.head(F.silu(self.norm(hidden, plain))), self.config.patch_size)
        return output if is_picture else output.unflatten(0, (latents.shape[0], -1)).transpose(1, 2)
