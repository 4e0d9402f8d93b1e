"""Residual blocks of the MaskGIT and MAGVIT tokenizers, whose convolutions have no bias.

Papers: MaskGIT: Masked Generative Image Transformer (Chang et al., 2022), arXiv:2202.04200; Open-MAGVIT2 (Luo et al.,
2024), arXiv:2409.04410.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.layers.convolution import group_norm

ShortcutOf = Literal["input", "residual"]


class BiaslessResidualBlock(nn.Module):
    """Norm, SiLU, 3 × 3 convolution, twice, beside the identity: (B, in, H, W) → (B, out, H, W).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        groups: of the group normalisations.
        shortcut_of: what the 1 × 1 shortcut projects where `in` is not `out`: the input, as usual, or the residual
            itself, as MaskGIT's published code has it, where nothing of the input gets past the block.
    """

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, shortcut_of: ShortcutOf = "input") -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = group_norm(out_channels, groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.is_widening = in_channels != out_channels
        self.projects_input = shortcut_of == "input"
        entering = in_channels if self.projects_input else out_channels
        self.shortcut = nn.Conv2d(entering, out_channels, 1, bias=False) if self.is_widening else nn.Identity()

    def forward(self, hidden: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        beside = residual if self.is_widening and not self.projects_input else hidden
        return self.shortcut(beside) + residual
