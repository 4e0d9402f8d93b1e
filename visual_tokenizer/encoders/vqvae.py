"""The convolutional encoder of VQ-VAE.

Paper: Neural Discrete Representation Learning (van den Oord et al., 2017), arXiv:1711.00937, section 4.1; with the
3 × 3 convolution that the authors' published example has between the strided ones and the residual blocks. Its 1 × 1
convolution to the code dimension is `VisualTokenizer.to_codes`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.encoders.base import Encoder, EncoderConfig, picture_grid
from visual_tokenizer.layers.convolution import tokens_from_map
from visual_tokenizer.layers.vqvae import ResidualStack, VQVAEShape


@dataclass(kw_only=True)
class VQVAEConfig(VQVAEShape, EncoderConfig):
    """Fields of the VQ-VAE encoder; the defaults are the published example's, a downsampling of 4."""


class VQVAE(Encoder):
    """Strided 4 × 4 convolutions, one of 3 × 3, residual blocks."""

    Config = VQVAEConfig

    def __init__(self, config: VQVAEConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.channels
        inputs = [3, *config.level_channels[:-1]]
        self.down = nn.ModuleList(
            nn.Conv2d(entering, leaving, 4, stride=2, padding=1)
            for entering, leaving in zip(inputs, config.level_channels, strict=True)
        )
        self.conv = nn.Conv2d(config.level_channels[-1], config.channels, 3, padding=1)
        self.residual = ResidualStack(config.channels, config.residual_channels, config.residual_blocks)

    def token_grid(self, height: int, width: int) -> tuple[int, ...]:
        side = 2**self.config.halvings
        return picture_grid(height, width, (side, side))

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = pixels
        for conv in self.down:
            hidden = F.relu(conv(hidden))
        return tokens_from_map(self.residual(F.relu(self.conv(hidden))))
