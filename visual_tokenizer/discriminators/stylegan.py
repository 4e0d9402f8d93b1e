"""StyleGAN2's residual discriminator: one logit a picture.

Paper: Analyzing and Improving the Image Quality of StyleGAN (Karras et al., 2020), arXiv:1912.04958, appendix B;
as the judge of a tokenizer in ViT-VQGAN (Yu et al., 2022), arXiv:2110.04627, section 3.3, and MaskGIT (Chang et al.,
2022), arXiv:2202.04200. Learning rates are equalised and pictures' standard deviations are a feature
(Progressive Growing of GANs, arXiv:1710.10196, sections 3 and 4.1).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.discriminators.base import Discriminator, DiscriminatorConfig
from visual_tokenizer.registry import ConfigError

LAST_SIDE = 4
"""Side of the feature map that the last layers see, in positions."""

BLUR = (1.0, 3.0, 3.0, 1.0)


@dataclass(kw_only=True)
class StyleGANConfig(DiscriminatorConfig):
    """Fields of StyleGAN2's discriminator; the defaults are configuration F's."""

    channel_base: Annotated[int, Ge(LAST_SIDE)] = 32768
    """A feature map of side s has channel_base / s channels …"""

    max_channels: Annotated[int, Ge(1)] = 512
    """… but no more than these."""

    group_size: Annotated[int, Ge(1)] = 4
    """Pictures whose standard deviation is taken together, within a rank's pass. Where the pass can't be divided by it,
    the largest smaller divisor is taken."""

    def channels(self, side: int) -> int:
        """Return the channels of a feature map of that side."""
        return max(1, min(self.channel_base // side, self.max_channels))


class EqualizedConv(nn.Module):
    """A convolution whose weights are N(0, 1) and scaled by 1/√fan-in as it runs, blurred first where it strides."""

    def __init__(self, before: int, after: int, side: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before, side, side))
        self.bias = nn.Parameter(torch.zeros(after)) if bias else None
        self.scale = 1 / math.sqrt(before * side * side)
        self.stride = stride
        self.padding = side // 2
        if stride > 1:
            taps = torch.tensor(BLUR) / sum(BLUR)
            self.register_buffer("blur", torch.outer(taps, taps)[None, None], persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        weight, bias = self.weight * self.scale, self.bias
        if self.stride == 1:
            return F.conv2d(hidden, weight, bias, padding=self.padding)
        kernel = self.get_buffer("blur").to(hidden.dtype).expand(hidden.shape[1], 1, -1, -1)
        blurred = F.conv2d(hidden, kernel, padding=self.padding + 1, groups=hidden.shape[1])
        return F.conv2d(blurred, weight, bias, stride=self.stride)


class EqualizedLinear(nn.Module):
    """A linear map of the same kind."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before))
        self.bias = nn.Parameter(torch.zeros(after))
        self.scale = 1 / math.sqrt(before)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight * self.scale, self.bias)


def activate(hidden: Tensor) -> Tensor:
    """Leaky ReLU that keeps the variance."""
    return F.leaky_relu(hidden, 0.2) * math.sqrt(2)


class HalvingBlock(nn.Module):
    """Two convolutions, the second of stride 2, beside a strided 1 × 1 one: (B, C, s, s) → (B, C', s/2, s/2)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = EqualizedConv(before, before, 3)
        self.conv2 = EqualizedConv(before, after, 3, stride=2)
        self.shortcut = EqualizedConv(before, after, 1, stride=2, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        residual = activate(self.conv2(activate(self.conv1(hidden))))
        return (residual + self.shortcut(hidden)) / math.sqrt(2)


def with_group_deviation(hidden: Tensor, group_size: int) -> Tensor:
    """Add a channel: the standard deviation within groups of pictures, averaged over all features.

    Picture b is in a group with b + k·(B / group) for all k, as published.
    """
    count = hidden.shape[0]
    size = next(size for size in range(min(group_size, count), 0, -1) if count % size == 0)
    groups = hidden.float().reshape(size, count // size, -1)
    deviation = (groups.var(0, correction=0) + 1e-8).sqrt().mean(1)
    feature = deviation.repeat(size).to(hidden.dtype)[:, None, None, None]
    return torch.cat([hidden, feature.expand(-1, 1, *hidden.shape[2:])], dim=1)


class StyleGAN(Discriminator):
    """(B, 3, H, H) → (B, 1), H the power of two that it was made for."""

    Config = StyleGANConfig

    def __init__(self, config: StyleGANConfig, *, image_size: int, num_frames: int = 0) -> None:
        super().__init__(config, image_size=image_size, num_frames=num_frames)
        if image_size < 2 * LAST_SIDE or image_size & (image_size - 1):
            raise ConfigError(
                f"image_size must be a power of two, {2 * LAST_SIDE} or more, for the discriminator stylegan, "
                f"got {image_size}"
            )
        sides = [image_size >> number for number in range((image_size // LAST_SIDE).bit_length())]
        widths = [config.channels(side) for side in sides]
        self.from_pixels = EqualizedConv(3, widths[0], 1)
        self.blocks = nn.Sequential(*(HalvingBlock(before, after) for before, after in itertools.pairwise(widths)))
        self.conv = EqualizedConv(widths[-1] + 1, widths[-1], 3)
        self.hidden = EqualizedLinear(widths[-1] * LAST_SIDE**2, widths[-1])
        self.head = EqualizedLinear(widths[-1], 1)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        hidden = self.blocks(activate(self.from_pixels(pixels)))
        hidden = activate(self.conv(with_group_deviation(hidden, self.config.group_size)))
        return [self.head(activate(self.hidden(hidden.flatten(1))))]
