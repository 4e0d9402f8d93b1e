"""The fields that parts of one kind share: transformers, and convolutional networks of levels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Interval, Len, MultipleOf

from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.layers.causal_convolution import TimePadding

PatchSize = Annotated[list[Annotated[int, Ge(1)]], Len(2, 2)]
"""Height and width in pixels."""


def check_heads(config: Any) -> None:
    """Check that `heads` of a config divide its `width`.

    Raises:
        UserError: they do not.
    """
    if config.width % config.heads:
        raise UserError(f"width must be a multiple of heads ({config.heads}), got {config.width}")


@dataclass(kw_only=True)
class TransformerShape(Section):
    """Width and depth of a transformer."""

    width: Annotated[int, Ge(1)] = 512
    """Channels throughout; a multiple of `heads`."""

    depth: Annotated[int, Ge(1)] = 8
    """Blocks."""

    heads: Annotated[int, Ge(1)] = 8
    """Attention heads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self)


@dataclass(kw_only=True)
class QueryShape(TransformerShape):
    """Width and depth of a transformer with a fixed number of latents."""

    num_latents: Annotated[int, Ge(1)] = 32
    """Tokens of a picture, the same in encoder and decoder; the most where pictures have as many as they need."""


@dataclass(kw_only=True)
class ViTShape(TransformerShape):
    """Widths and depths of ViT-VQGAN's transformer."""

    patch_size: PatchSize = field(default_factory=lambda: [8, 8])
    """Height and width of a patch in pixels; a patch is a token."""

    width: Annotated[int, Ge(1), MultipleOf(4)] = 512
    """Channels of the transformer; a multiple of `heads`, and of 4: two sines and two cosines."""

    @property
    def patch_channels(self) -> int:
        """Numbers in a patch: three colours of each pixel."""
        return 3 * math.prod(self.patch_size)


@dataclass(kw_only=True)
class LevelShape(Section):
    """Widths and depths of a convolutional network of levels."""

    channels: Annotated[int, Ge(1)] = 128
    """Channels at full resolution, which `channel_multipliers` multiply."""

    channel_multipliers: Annotated[list[Annotated[int, Ge(1)]], Len(1)] = field(default_factory=lambda: [1, 1, 2, 2, 4])
    """Channels of each level as multiples of `channels`, fine to coarse; between levels height and width halve, or
    double in a decoder."""

    blocks_per_level: Annotated[int, Ge(1)] = 2
    """Residual blocks a level."""

    latent_channels: Annotated[int, Ge(1)] = 256
    """Channels of a latent on the quantizer's side."""

    @property
    def level_channels(self) -> list[int]:
        """Channels of each level, fine to coarse."""
        return [self.channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def level_side(self) -> int:
        """Side of what one position of the coarsest level stands for, in positions of the finest."""
        side: int = 2 ** (len(self.channel_multipliers) - 1)
        return side

    def check_halvings(self, name: str) -> None:
        """Check that a list of fields says something of each level but the last.

        Raises:
            UserError: it is longer or shorter.
        """
        given, levels = len(getattr(self, name)), len(self.channel_multipliers)
        if given != levels - 1:
            raise UserError(f"{name} must have one entry less than channel_multipliers, got {given} for {levels}")


@dataclass(kw_only=True)
class GroupedLevelShape(LevelShape):
    """Those of a network with group normalisation."""

    groups: Annotated[int, Ge(1)] = 32
    """Groups of the group normalisation; divides every level's channels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(channels % self.groups for channels in self.level_channels):
            raise UserError(f"groups must divide the channels {self.level_channels}, got {self.groups}")


@dataclass(kw_only=True)
class OpenMAGVIT2Shape(GroupedLevelShape):
    """Widths and depths of Open-MAGVIT2's network."""

    blocks_per_level: Annotated[int, Ge(1)] = 4
    """Residual blocks a level, and in the middle."""

    latent_channels: Annotated[int, Ge(1)] = 18
    """Channels of a code."""


@dataclass(kw_only=True)
class PatchedLevelShape(GroupedLevelShape):
    """Those of a network that may begin with patches."""

    patch_size: PatchSize = field(default_factory=lambda: [1, 1])
    """Height and width in pixels of the patches that are folded into channels before the first convolution; [1, 1] is
    as published, more is faster, and unequal sides give token counts between the powers of four."""

    @property
    def patch_area(self) -> int:
        """Pixels of one patch."""
        return self.patch_size[0] * self.patch_size[1]

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width in pixels that one token stands for."""
        return self.patch_size[0] * self.level_side, self.patch_size[1] * self.level_side


@dataclass(kw_only=True)
class CNNShape(PatchedLevelShape):
    """Widths and depths of VQGAN's convolutional network."""

    attention_resolutions: list[Annotated[int, Ge(1)]] = field(default_factory=lambda: [16])
    """Sides of the feature maps, in positions at the nominal picture size, whose levels get self-attention."""

    middle_attention: bool = True
    """Whether the middle block has self-attention."""

    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Dropout inside residual blocks."""


@dataclass(kw_only=True)
class CausalShape(PatchedLevelShape):
    """Widths, depths and strides of MAGVIT-2's causal network, whose group normalisation is that of single frames."""

    channel_multipliers: Annotated[list[Annotated[int, Ge(1)]], Len(1)] = field(default_factory=lambda: [1, 2, 2, 4])
    """Channels of each level as multiples of `channels`, fine to coarse; height and width halve between levels."""

    temporal_downsampling: list[bool] = field(default_factory=lambda: [False, True, True])
    """Whether the number of frames halves as well after each level but the last."""

    blocks_per_level: Annotated[int, Ge(1)] = 4
    """Residual blocks a level."""

    time_padding: TimePadding = "zeros"
    """What stands before the first frame: zeros (MAGVIT-2) or replicate, copies of it (CogVideoX)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_halvings("temporal_downsampling")

    @property
    def strides(self) -> tuple[int, int, int]:
        """Frames (after the first), height and width in pixels that one token stands for."""
        return 2 ** sum(self.temporal_downsampling), *self.sides
