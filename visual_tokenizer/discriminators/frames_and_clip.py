"""Two judges of a clip: one sees single frames drawn at random, the other the whole clip.

Paper: Long Video Generation with Time-Agnostic VQGAN and Time-Sensitive Transformer (Ge et al., 2022),
arXiv:2204.03638, section 3.1; first in MoCoGAN (Tulyakov et al., 2018), arXiv:1707.04993.

What differs: real and reconstructed frames are drawn by themselves, not at the same places.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from visual_tokenizer.discriminators.base import Discriminator, DiscriminatorConfig


@dataclass(kw_only=True)
class FramesAndClipConfig(DiscriminatorConfig):
    """Fields of the pair."""

    frames: DiscriminatorConfig = field(default_factory=lambda: DiscriminatorConfig.family.config({"type": "patchgan"}))
    """Judge of single frames."""

    clip: DiscriminatorConfig = field(
        default_factory=lambda: DiscriminatorConfig.family.config({"type": "patchgan_3d"})
    )
    """Judge of clips."""

    frames_per_clip: Annotated[int, Ge(1)] = 1
    """Frames drawn from each clip at each look, with replacement."""


class FramesAndClip(Discriminator):
    """(B, 3, T, H, W) → the logits of the judge of frames, then those of the judge of clips."""

    Config = FramesAndClipConfig
    takes_video: ClassVar[bool] = True

    def __init__(self, config: FramesAndClipConfig, *, image_size: int, num_frames: int = 0) -> None:
        super().__init__(config, image_size=image_size, num_frames=num_frames)
        build = DiscriminatorConfig.family.build
        self.frames = build(config.frames, image_size=image_size, num_frames=0)
        self.clip = build(config.clip, image_size=image_size, num_frames=num_frames)
        self.judges = self.frames.judges + self.clip.judges

    def forward(self, pixels: Tensor) -> list[Tensor]:
        clips, frames = pixels.shape[0], pixels.shape[2]
        drawn = torch.randint(frames, (clips, self.config.frames_per_clip), device=pixels.device)
        rows = torch.arange(clips, device=pixels.device)[:, None]
        pictures = pixels.transpose(1, 2)[rows, drawn].flatten(0, 1)
        return [*self.frames(pictures), *self.clip(pixels)]
