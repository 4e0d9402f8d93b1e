"""PatchGAN: a logit for each patch of a picture.

Paper: Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2017), arXiv:1611.07004,
section 3.2.2 and appendix 6.1.2; the defaults are those of Taming Transformers (Esser et al., 2021), arXiv:2012.09841.

What differs: batch normalisation takes its statistics over all ranks, where the published code normalises each rank's
batch by itself. Its other choice, ActNorm, sets itself by the first batch that a rank sees and would have to be
broadcast; `norm: group` needs nothing of the kind.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from visual_tokenizer.discriminators.base import Discriminator, PatchStackConfig, patch_stack, stack_side
from visual_tokenizer.registry import ConfigError


@dataclass(kw_only=True)
class PatchGANConfig(PatchStackConfig):
    """PatchGAN has no field of its own."""


class PatchGAN(Discriminator):
    """(B, 3, H, W) → (B, 1, h, w) logits, each of a patch that overlaps its neighbours."""

    Config = PatchGANConfig

    def __init__(self, config: PatchGANConfig, *, image_size: int, num_frames: int = 0) -> None:
        super().__init__(config, image_size=image_size, num_frames=num_frames)
        if stack_side(image_size, config.layers, padding=1) < 1:
            raise ConfigError(
                f"image_size must be {3 * 2**config.layers} or more for a patchgan of {config.layers} layers, "
                f"got {image_size}"
            )
        self.stack = patch_stack(nn.Conv2d, config, padding=1)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        return [self.stack(pixels)]
