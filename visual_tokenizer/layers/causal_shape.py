"""The fields that the causal CNN encoder and decoder share."""

from __future__ import annotations

from dataclasses import dataclass, field

from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.causal_convolution import TimePadding


@dataclass(kw_only=True)
class CausalShape:
    """Widths, depths and strides of MAGVIT-2's causal network."""

    channels: int = 128
    """Channels at full resolution; a multiple of `groups`."""

    channel_multipliers: list[int] = field(default_factory=lambda: [1, 2, 2, 4])
    """Channels of each level as multiples of `channels`, fine to coarse; height and width halve between levels."""

    temporal_downsampling: list[bool] = field(default_factory=lambda: [False, True, True])
    """Whether the number of frames halves as well after each level but the last."""

    blocks_per_level: int = 4
    """Residual blocks a level; 1 or more."""

    latent_channels: int = 256
    """Channels of a latent on the quantizer's side; 1 or more."""

    patch_size: list[int] = field(default_factory=lambda: [1, 1])
    """Height and width in pixels of the patches that are folded into channels before the first convolution; [1, 1] is
    MAGVIT-2's own, more is faster."""

    groups: int = 32
    """Groups of the group normalisation, whose statistics are those of one frame; divides every level's channels."""

    time_padding: TimePadding = "zeros"
    """What stands before the first frame: zeros (MAGVIT-2) or replicate, copies of it (CogVideoX)."""

    def __post_init__(self) -> None:
        for name in ("channels", "blocks_per_level", "latent_channels", "groups"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise UserError(
                f"channel_multipliers must be a list of integers of 1 or more, got {self.channel_multipliers}"
            )
        if len(self.temporal_downsampling) != len(self.channel_multipliers) - 1:
            raise UserError(
                f"temporal_downsampling must have one entry less than channel_multipliers, got "
                f"{len(self.temporal_downsampling)} for {len(self.channel_multipliers)}"
            )
        if len(self.patch_size) != 2 or min(self.patch_size) < 1:
            raise UserError(f"patch_size must be [height, width], each 1 or more, got {self.patch_size}")
        if any(channels % self.groups for channels in self.level_channels):
            raise UserError(f"groups must divide the channels {self.level_channels}, got {self.groups}")

    @property
    def level_channels(self) -> list[int]:
        """Channels of each level, fine to coarse."""
        return [self.channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def patch_area(self) -> int:
        """Pixels of one patch."""
        return self.patch_size[0] * self.patch_size[1]

    @property
    def downsampling(self) -> tuple[int, int, int]:
        """Frames (after the first), height and width in pixels that one token stands for."""
        halvings = 2 ** (len(self.channel_multipliers) - 1)
        return 2 ** sum(self.temporal_downsampling), self.patch_size[0] * halvings, self.patch_size[1] * halvings
