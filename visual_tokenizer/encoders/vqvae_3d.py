"""VideoGPT's encoder: strided 3-D convolutions, then residual blocks with axial attention; clips only, not causal.

Paper: VideoGPT: Video Generation using VQ-VAE and Transformers (Yan et al., 2021), arXiv:2104.10157, section 3.1 and
appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, even_grid
from visual_tokenizer.layers.axial_attention import AxialShape, axial_stack
from visual_tokenizer.layers.clip import as_clip, tokens_from_clip
from visual_tokenizer.layers.same_convolution import SameConv3d, strides_of


@dataclass(kw_only=True)
class VQVAE3DConfig(AxialShape, EncoderConfig):
    """Fields of VideoGPT's encoder; the defaults are the published ones."""


class VQVAE3D(Encoder):
    """One convolution of stride 2 and ReLU a halving, one of stride 1, then the residual blocks.

    The last convolution has no bias, which the batch normalisations behind it would take away.
    """

    Config = VQVAE3DConfig
    takes_video = True

    def __init__(self, config: VQVAE3DConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.halvings = nn.ModuleList()
        channels = 3
        for stride in strides_of(config.downsampling):
            self.halvings.append(SameConv3d(channels, config.width, 4, stride))
            channels = config.width
        self.last = SameConv3d(channels, config.width, 3, bias=False)
        self.stack = axial_stack(config)

    def token_grid(self, height: int, width: int, frames: int = 0) -> tuple[int, ...]:
        return even_grid(height, width, frames, self.config.downsampling)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = as_clip(pixels)
        for convolution in self.halvings:
            hidden = F.relu(convolution(hidden))
        return tokens_from_clip(self.stack(self.last(hidden)))
