"""The fields of convolutional networks of levels without attention."""

from __future__ import annotations

from dataclasses import dataclass, field

from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class LevelShape:
    """Widths and depths."""

    channels: int = 128
    """Channels at full resolution; a multiple of `groups`."""

    channel_multipliers: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4])
    """Channels of each level as multiples of `channels`, fine to coarse; resolution halves between levels."""

    blocks_per_level: int = 4
    """Residual blocks a level, and in the middle; 1 or more."""

    latent_channels: int = 18
    """Channels of a latent on the quantizer's side; 1 or more."""

    groups: int = 32
    """Groups of the group normalisation; divides every level's channels."""

    def __post_init__(self) -> None:
        for name in ("channels", "blocks_per_level", "latent_channels", "groups"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise UserError(
                f"channel_multipliers must be a list of integers of 1 or more, got {self.channel_multipliers}"
            )
        if any(channels % self.groups for channels in self.level_channels):
            raise UserError(f"groups must divide the channels {self.level_channels}, got {self.groups}")

    @property
    def level_channels(self) -> list[int]:
        """Channels of each level, fine to coarse."""
        return [self.channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def downsampling(self) -> int:
        """Side in pixels of what one token stands for."""
        side: int = 2 ** (len(self.channel_multipliers) - 1)
        return side
