"""Learned heads on the features of a frozen network, of the DINO kind or any other of `backbones`.

Paper: StyleGAN-T (Sauer et al., 2023), arXiv:2301.09515, section 3.2: a head for each of several layers of a frozen
DINO ViT-S/16, with spectral normalisation and batch normalisation of virtual batches; pictures are augmented alike
before they are judged (Differentiable Augmentation, Zhao et al., 2020, arXiv:2006.10738). Tokenizers that use it: VAR
(Tian et al., 2024), arXiv:2404.02905.

What differs: the heads see the feature maps that the backbone gives, flattened row by row, without its class token;
there is no text condition; pictures larger than `size` are shrunk and never cropped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge, Len
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from visual_tokenizer.backbones.base import NetworkHolder, check_layers, load_backbone, resize_shorter_side
from visual_tokenizer.discriminators.base import Discriminator, DiscriminatorConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Different


@dataclass(kw_only=True)
class DINOConfig(DiscriminatorConfig):
    """Fields of the heads and of what they look at."""

    network: str = "efficientnet_lite0"
    """Frozen network: a file of `visual_tokenizer/backbones`; published with a DINO ViT-S/16."""

    weights: str | None = None
    """Path or name of the network's weights; without it those of an installed package."""

    levels: Annotated[list[Annotated[int, Ge(0)]], Len(1), Different()] = field(default_factory=lambda: [1, 2, 3, 4])
    """Levels of the network that get a head; 0 is the finest."""

    size: Annotated[int, Ge(0)] = 0
    """Pixels of the shorter side at which the network sees the pictures; 0 for their own."""

    kernel_size: Annotated[int, Ge(1)] = 9
    """Positions that a head's second convolution sees along the flattened feature map; odd."""

    virtual_batch: Annotated[int, Ge(1)] = 8
    """Pictures that are normalised together within a rank's pass. Where the pass can't be divided by it, the largest
    smaller divisor is taken."""

    augment: bool = True
    """Whether colours, position and a cut-out square are changed at random before a look."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size % 2 == 0:
            raise UserError(f"kernel_size must be odd, got {self.kernel_size}")


class VirtualBatchNorm(nn.Module):
    """Batch normalisation of groups of pictures: (B, C, N) → (B, C, N). No running averages, nothing over ranks."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, hidden: Tensor) -> Tensor:
        count = hidden.shape[0]
        size = next(size for size in range(min(self.size, count), 0, -1) if count % size == 0)
        groups = hidden.float().unflatten(0, (count // size, size))
        variance, mean = torch.var_mean(groups, dim=(1, 3), correction=0, keepdim=True)
        normal = ((groups - mean) * (variance + 1e-5).rsqrt()).flatten(0, 1)
        return (normal * self.weight[:, None] + self.bias[:, None]).to(hidden.dtype)


class WrappedConv(nn.Module):
    """A spectrally normalised convolution along a row whose ends meet, also where the kernel is longer than the row."""

    def __init__(self, before: int, after: int, kernel_size: int) -> None:
        super().__init__()
        self.reach = kernel_size // 2
        self.conv = spectral_norm(nn.Conv1d(before, after, kernel_size), eps=1e-12)

    def forward(self, hidden: Tensor) -> Tensor:
        length = hidden.shape[-1]
        places = torch.arange(-self.reach, length + self.reach, device=hidden.device) % length
        return self.conv(hidden.index_select(-1, places))


class Head(nn.Module):
    """(B, C, N) features → (B, N) logits."""

    def __init__(self, channels: int, config: DINOConfig) -> None:
        super().__init__()
        self.first = self._block(channels, 1, config)
        self.second = self._block(channels, config.kernel_size, config)
        self.logits = WrappedConv(channels, 1, 1)

    @staticmethod
    def _block(channels: int, kernel_size: int, config: DINOConfig) -> nn.Sequential:
        norm = VirtualBatchNorm(channels, config.virtual_batch)
        return nn.Sequential(WrappedConv(channels, channels, kernel_size), norm, nn.LeakyReLU(0.2))

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.first(features)
        return self.logits((hidden + self.second(hidden)) / math.sqrt(2)).squeeze(1)


def augmented(pixels: Tensor) -> Tensor:
    """Return (B, 3, H, W) pixels with other colours, shifted by up to an eighth and with a rectangle cut out.

    Gradients pass to what is still seen.
    """
    count, _, height, width = pixels.shape
    device = pixels.device
    brightness, saturation, contrast = torch.rand(3, count, 1, 1, 1, device=device, dtype=pixels.dtype).unbind()
    pixels = pixels + (brightness - 0.5)
    grey = pixels.mean(1, keepdim=True)
    pixels = (pixels - grey) * (2 * saturation) + grey
    mean = pixels.mean((1, 2, 3), keepdim=True)
    pixels = (pixels - mean) * (contrast + 0.5) + mean
    for dim, length in ((2, height), (3, width)):
        pixels = _shifted(pixels, dim, length)
    is_cut = pixels.new_ones(count, 1, 1, 1, dtype=torch.bool)
    for dim, length in ((2, height), (3, width)):
        side = max(1, length // 5)
        first = torch.randint(-(side // 2), length - side // 2, (count, 1, 1, 1), device=device)
        places = torch.arange(length, device=device).view([-1 if axis == dim else 1 for axis in range(4)])
        is_cut = is_cut & (places >= first) & (places < first + side)
    return pixels.masked_fill(is_cut, 0)


def _shifted(pixels: Tensor, dim: int, length: int) -> Tensor:
    """Shift each picture along `dim` by up to an eighth of its length; what comes in is 0."""
    most = length // 8
    count, device = pixels.shape[0], pixels.device
    shape = [count if axis == 0 else (-1 if axis == dim else 1) for axis in range(4)]
    shift = torch.randint(-most, most + 1, (count, 1), device=device)
    places = (torch.arange(length, device=device) + shift).view(shape)
    is_inside = (places >= 0) & (places < length)
    return pixels.gather(dim, places.clamp(0, length - 1).expand_as(pixels)) * is_inside


class DINO(NetworkHolder, Discriminator):
    """(B, 3, H, W) → (B, L) logits: those of all heads, one for each position of each feature map."""

    Config = DINOConfig

    def __init__(self, config: DINOConfig, *, image_size: int, num_frames: int = 0) -> None:
        super().__init__(config, image_size=image_size, num_frames=num_frames)
        network = load_backbone(config.network, config.weights)
        check_layers(config.levels, network)
        self.hold(network.requires_grad_(False))
        self.heads = nn.ModuleList(Head(network.feature_dims[level], config) for level in config.levels)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        if self.config.augment:
            pixels = augmented(pixels)
        if self.config.size:
            pixels = resize_shorter_side(pixels, self.config.size)
        maps = self.network.features(pixels, max(self.config.levels) + 1)
        chosen = [maps[level].flatten(2) for level in self.config.levels]
        return [torch.cat([head(features) for head, features in zip(self.heads, chosen, strict=True)], dim=1)]
