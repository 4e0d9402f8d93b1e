"""VideoGPT's decoder: residual blocks with axial attention, then transposed 3-D convolutions; not causal.

Paper: VideoGPT: Video Generation using VQ-VAE and Transformers (Yan et al., 2021), arXiv:2104.10157, section 3.1 and
appendix A.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.axial_attention import AxialShape, axial_stack
from visual_tokenizer.layers.clip import as_asked, clip_from_tokens
from visual_tokenizer.layers.same_convolution import SameConvTranspose3d, strides_of


@dataclass(kw_only=True)
class VQVAE3DConfig(AxialShape, DecoderConfig):
    """Fields of VideoGPT's decoder; the defaults are the published ones."""


class VQVAE3D(Decoder):
    """The encoder's mirror, without its convolution of stride 1."""

    Config = VQVAE3DConfig
    takes_video = True

    def __init__(self, config: VQVAE3DConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.stack = axial_stack(config)
        strides = strides_of(config.downsampling)
        self.doublings = nn.ModuleList(
            SameConvTranspose3d(config.width, 3 if level == len(strides) - 1 else config.width, 4, stride)
            for level, stride in enumerate(strides)
        )

    @property
    def last_layer(self) -> nn.Parameter:
        return self.get_parameter(f"doublings.{len(self.doublings) - 1}.conv.weight")

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        hidden = self.stack(clip_from_tokens(latents, grid))
        *before, last = self.doublings
        for convolution in before:
            hidden = F.relu(convolution(hidden))
        return as_asked(last(hidden), grid)
