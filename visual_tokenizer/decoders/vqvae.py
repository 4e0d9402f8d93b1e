"""The convolutional decoder of VQ-VAE.

Paper: Neural Discrete Representation Learning (van den Oord et al., 2017), arXiv:1711.00937, section 4.1; with the
3 × 3 convolution that the authors' published example has first. `VisualTokenizer.from_codes`, a linear map, comes
before it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.convolution import map_from_tokens
from visual_tokenizer.layers.vqvae import ResidualStack, VQVAEShape


@dataclass(kw_only=True)
class VQVAEConfig(VQVAEShape, DecoderConfig):
    """Fields of the VQ-VAE decoder; the defaults are the published example's, an upsampling of 4."""


class VQVAE(Decoder):
    """A 3 × 3 convolution, residual blocks, transposed 4 × 4 convolutions."""

    Config = VQVAEConfig

    def __init__(self, config: VQVAEConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.channels
        self.conv = nn.Conv2d(config.channels, config.channels, 3, padding=1)
        self.residual = ResidualStack(config.channels, config.residual_channels, config.residual_blocks)
        leaving = [*reversed(config.level_channels[:-1]), 3]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            for before, after in zip([config.channels, *leaving[:-1]], leaving, strict=True)
        )

    @property
    def last_layer(self) -> nn.Parameter:
        return self.get_parameter(f"up.{len(self.up) - 1}.weight")

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        hidden = self.residual(self.conv(map_from_tokens(latents, grid)))
        for number, conv in enumerate(self.up):
            hidden = conv(hidden if number == 0 else F.relu(hidden))
        return hidden
