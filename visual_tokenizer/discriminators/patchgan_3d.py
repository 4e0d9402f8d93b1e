"""PatchGAN for clips: a logit for each patch of space and time.

Paper: Long Video Generation with Time-Agnostic VQGAN and Time-Sensitive Transformer (Ge et al., 2022),
arXiv:2204.03638, section 3.1 and the published code: kernels of 4 × 4 × 4, padded by 2, so that a few frames suffice.

What differs: the weights start from N(0, 0.02²) as in PatchGAN, and the features are not matched (its weight is 0 by
default there too).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from visual_tokenizer.discriminators.base import Discriminator, PatchStackConfig, patch_stack


@dataclass(kw_only=True)
class PatchGAN3DConfig(PatchStackConfig):
    """PatchGAN for clips has no field of its own."""


class PatchGAN3D(Discriminator):
    """(B, 3, T, H, W) → (B, 1, t, h, w) logits."""

    Config = PatchGAN3DConfig
    takes_video: ClassVar[bool] = True

    def __init__(self, config: PatchGAN3DConfig, *, image_size: int, num_frames: int = 0) -> None:
        super().__init__(config, image_size=image_size, num_frames=num_frames)
        self.stack = patch_stack(nn.Conv3d, config, padding=2)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [self.stack(pixels)]
