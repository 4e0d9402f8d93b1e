"""The fields that the ViT encoder and the ViT decoder share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.attention_shape import check_attention_shape


@dataclass(kw_only=True)
class ViTShape:
    """Widths and depths of ViT-VQGAN's transformer."""

    patch_size: list[int] = field(default_factory=lambda: [8, 8])
    """Height and width of a patch in pixels, each 1 or more; a patch is a token."""

    width: int = 512
    """Channels of the transformer; a multiple of `heads` and of 4 (two sines and two cosines)."""

    depth: int = 8
    """Transformer blocks; 1 or more."""

    heads: int = 8
    """Attention heads; 1 or more."""

    def __post_init__(self) -> None:
        if len(self.patch_size) != 2 or min(self.patch_size) < 1:
            raise UserError(f"patch_size must be [height, width], each 1 or more, got {self.patch_size}")
        check_attention_shape(self, ("width", "depth", "heads"), has_sines=True)

    @property
    def patch_channels(self) -> int:
        """Numbers in a patch: three colours of each pixel."""
        return 3 * math.prod(self.patch_size)
