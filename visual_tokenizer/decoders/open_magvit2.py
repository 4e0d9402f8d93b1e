"""The convolutional decoder of Open-MAGVIT2 for pictures.

Paper: Open-MAGVIT2: An Open-Source Project Toward Democratizing Auto-regressive Visual Generation (Luo et al., 2024),
arXiv:2409.04410, section 3.1: adaptive group normalisation before each level, whose scale and shift follow from all
codes of the picture, and doubling by depth-to-space.
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.layers.biasless import BiaslessResidualBlock
from visual_tokenizer.layers.convolution import group_norm, map_from_tokens
from visual_tokenizer.layers.shape import OpenMAGVIT2Shape

SMALLEST_VARIANCE = 1e-6


@dataclass(kw_only=True)
class OpenMAGVIT2Config(OpenMAGVIT2Shape, DecoderConfig):
    """Fields of the Open-MAGVIT2 decoder; the defaults are those of 16 × 16 pixels a token and 2^18 codes."""


class AdaptiveGroupNorm(nn.Module):
    """Group normalisation; a picture's scale is linear in its codes' deviation, its shift in their mean.

    The deviation is that of a sample, over the positions of the picture, of which there must be two or more.
    """

    def __init__(self, channels: int, code_channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=SMALLEST_VARIANCE, affine=False)
        self.scale = nn.Linear(code_channels, channels)
        self.shift = nn.Linear(code_channels, channels)

    def forward(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Normalise (B, C, H, W) by codes (B, N, Z)."""
        scale = self.scale((codes.var(dim=1) + SMALLEST_VARIANCE).sqrt())
        shift = self.shift(codes.mean(dim=1))
        return scale[..., None, None] * self.norm(hidden) + shift[..., None, None]


class DepthToSpace(nn.Module):
    """A convolution to four times the channels, which become 2 × 2 positions: (B, C, H, W) → (B, C, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return rearrange(self.conv(hidden), "b (p q c) h w -> b c (h p) (w q)", p=2, q=2)


class OpenMAGVIT2(Decoder):
    """The encoder's mirror; takes codes as they are."""

    Config = OpenMAGVIT2Config
    latents_are_codes = True
    last_weight = "head.weight"

    def __init__(self, config: OpenMAGVIT2Config, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.latent_channels
        channels = config.level_channels[-1]
        self.stem = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.middle = nn.Sequential(
            *(BiaslessResidualBlock(channels, channels, groups=config.groups) for _ in range(config.blocks_per_level))
        )
        self.norms, self.levels = nn.ModuleList(), nn.ModuleList()
        for level, leaving in reversed(list(enumerate(config.level_channels))):
            self.norms.append(AdaptiveGroupNorm(channels, config.latent_channels, groups=config.groups))
            layers: list[nn.Module] = []
            for _ in range(config.blocks_per_level):
                layers.append(BiaslessResidualBlock(channels, leaving, groups=config.groups))
                channels = leaving
            if level > 0:
                layers.append(DepthToSpace(channels))
            self.levels.append(nn.Sequential(*layers))
        self.norm = group_norm(channels, config.groups)
        self.head = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        hidden = self.middle(self.stem(map_from_tokens(latents, grid)))
        for norm, level in zip(self.norms, self.levels, strict=True):
            hidden = level(norm(hidden, latents))
        return self.head(F.silu(self.norm(hidden)))
