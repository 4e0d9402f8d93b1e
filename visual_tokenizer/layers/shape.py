"""The fields that the CNN encoder and the CNN decoder share."""

from __future__ import annotations

from dataclasses import dataclass, field

from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class CNNShape:
    """Widths and depths of VQGAN's convolutional network."""

    channels: int = 128
    """Channels at full resolution; a multiple of `groups`."""

    channel_multipliers: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4])
    """Channels of each level as multiples of `channels`, fine to coarse; resolution halves between levels."""

    blocks_per_level: int = 2
    """Residual blocks a level; 1 or more."""

    attention_resolutions: list[int] = field(default_factory=lambda: [16])
    """Sides of the feature maps, in positions at the nominal picture size, whose levels get self-attention."""

    middle_attention: bool = True
    """Whether the middle block has self-attention."""

    latent_channels: int = 256
    """Channels of a latent on the quantizer's side; 1 or more."""

    patch_size: list[int] = field(default_factory=lambda: [1, 1])
    """Height and width in pixels of the patches that are folded into channels before the first convolution; [1, 1] is
    VQGAN's own, more is faster, and unequal sides give token counts between the powers of four."""

    groups: int = 32
    """Groups of the group normalisation; divides every level's channels."""

    dropout: float = 0.0
    """Dropout inside residual blocks; in [0, 1)."""

    def __post_init__(self) -> None:
        for name in ("channels", "blocks_per_level", "latent_channels", "groups"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if len(self.patch_size) != 2 or min(self.patch_size) < 1:
            raise UserError(f"patch_size must be [height, width], each 1 or more, got {self.patch_size}")
        if not self.channel_multipliers or min(self.channel_multipliers) < 1:
            raise UserError(
                f"channel_multipliers must be a list of integers of 1 or more, got {self.channel_multipliers}"
            )
        if any(channels % self.groups for channels in self.level_channels):
            raise UserError(f"groups must divide the channels {self.level_channels}, got {self.groups}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def level_channels(self) -> list[int]:
        """Channels of each level, fine to coarse."""
        return [self.channels * multiplier for multiplier in self.channel_multipliers]

    @property
    def patch_area(self) -> int:
        """Pixels of one patch."""
        return self.patch_size[0] * self.patch_size[1]

    @property
    def downsampling(self) -> tuple[int, int]:
        """Height and width in pixels that one token stands for."""
        halvings = 2 ** (len(self.channel_multipliers) - 1)
        return self.patch_size[0] * halvings, self.patch_size[1] * halvings
