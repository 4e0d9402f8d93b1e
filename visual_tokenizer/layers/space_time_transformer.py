"""Transformers over the positions of each frame and over the frames of each position, and OmniTokenizer's fields.

Paper: OmniTokenizer: A Joint Image-Video Tokenizer for Visual Generation (Wang et al., 2024), arXiv:2406.09399,
section 3.1; its blocks are those of Phenaki's C-ViViT (Villegas et al., 2022), arXiv:2210.02399, section 2.1: a causal
depthwise convolution says where a token is, queries and keys are normalised, and attention over time is causal with
linear biases (ALiBi; Press et al., 2021, arXiv:2108.12409). Full attention over space turns queries and keys by their
row and column (RoPE; Su et al., 2021, arXiv:2104.09864).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Len
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.layers.causal_convolution import CausalConv3d
from visual_tokenizer.layers.window_attention import WindowAttention

SpatialBlock = Literal["full", "window"]
ATTENTION_SCALE = 8.0
"""Factor of the scores of unit vectors."""


@dataclass(kw_only=True)
class OmniShape(Section):
    """Widths, depths and patches of OmniTokenizer's network."""

    patch_size: Annotated[int, Ge(1)] = 8
    """Side of a patch in pixels."""

    temporal_patch_size: Annotated[int, Ge(1)] = 4
    """Frames of a patch, but for the first frame, which is patched alone."""

    width: Annotated[int, Ge(1)] = 512
    """Channels throughout; a multiple of 4 · `heads`."""

    heads: Annotated[int, Ge(1)] = 8
    """Attention heads."""

    spatial_blocks: Annotated[list[SpatialBlock], Len(1)] = field(
        default_factory=lambda: ["full", "full", "window", "window"]
    )
    """Transformer blocks over each frame, in this order: full attention or within windows."""

    window_size: Annotated[int, Ge(1)] = 8
    """Side of a window in tokens; where there are window blocks it divides the sides of the token grid."""

    temporal_blocks: Annotated[int, Ge(1)] = 4
    """Transformer blocks over time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % (4 * self.heads):
            raise UserError(f"width must be a multiple of 4 · heads ({4 * self.heads}), got {self.width}")


class GatedFeedForward(nn.Module):
    """Layer norm, then a linear map whose one half, by GELU, gates the other (GEGLU), and one back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = width * 8 // 3
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * inner, bias=False)
        self.contract = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        value, gate = self.expand(self.norm(hidden)).chunk(2, dim=-1)
        return self.contract(F.gelu(gate) * value)


class CausalPositions(nn.Module):
    """What a depthwise causal 3 × 3 × 3 convolution adds to tokens (B, T, H, W, C) to say where they are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(width, width, groups=width)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.conv(hidden.movedim(-1, 1)).movedim(1, -1)


class UnitAttention(nn.Module):
    """Multi-head self-attention over the last but one axis, with normalised and rescaled queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.projection = nn.Linear(width, width, bias=False)
        self.query_scale = nn.Parameter(torch.ones(width // heads))
        self.key_scale = nn.Parameter(torch.ones(width // heads))

    def forward(self, hidden: Tensor, turns: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Mix (B, N, C).

        Args:
            hidden: the tokens.
            turns: angles (N, C / heads / 2) by which pairs of channels of queries and keys are turned.
            bias: (heads, N, N), added to the scores.
        """
        heads = self.query_key_value(self.norm(hidden)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        if turns is not None:
            query, key = rotate(query, turns), rotate(key, turns)
        query = (F.normalize(query.float(), dim=-1) * self.query_scale).to(value.dtype)
        key = (F.normalize(key.float(), dim=-1) * self.key_scale).to(value.dtype)
        mask = None if bias is None else bias.to(value.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=ATTENTION_SCALE)
        return self.projection(mixed.transpose(1, 2).flatten(2))


def rotate(vectors: Tensor, turns: Tensor) -> Tensor:
    """Turn channels 2i and 2i + 1 of (…, N, D) by angle i of (N, D/2)."""
    first, second = vectors.float().unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = turns.cos(), turns.sin()
    turned = torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    return turned.flatten(-2).to(vectors.dtype)


def grid_turns(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Return angles (height · width, channels / 2): pairs of channels take the column's and the row's in turn."""
    exponents = torch.arange(channels // 4, device=device, dtype=torch.float32) * 4 / channels
    frequencies = torch.exp(-math.log(10000.0) * exponents)
    columns = torch.arange(width, device=device)[None, :, None] * frequencies
    rows = torch.arange(height, device=device)[:, None, None] * frequencies
    shape = (height, width, channels // 4)
    return torch.stack([columns.expand(shape), rows.expand(shape)], dim=-1).reshape(height * width, channels // 2)


def causal_linear_bias(frames: int, heads: int, device: torch.device) -> Tensor:
    """Return (heads, T, T): −slope · distance to earlier frames, −∞ for later ones; slopes 2^(−8 (h + 1) / heads)."""
    places = torch.arange(frames, device=device, dtype=torch.float32)
    ahead = places[None, :] - places[:, None]
    slopes = torch.exp2(-8.0 * torch.arange(1, heads + 1, device=device, dtype=torch.float32) / heads)
    return (slopes[:, None, None] * ahead).masked_fill(ahead > 0, -math.inf)


class FullSpatialBlock(nn.Module):
    """Every position of a frame attends to every other: (B, T, H, W, C)."""

    def __init__(self, shape: OmniShape) -> None:
        super().__init__()
        self.positions = CausalPositions(shape.width)
        self.attention = UnitAttention(shape.width, shape.heads)
        self.feed_forward = GatedFeedForward(shape.width)
        self.head_channels = shape.width // shape.heads

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.positions(hidden)
        height, width = hidden.shape[2:4]
        turns = grid_turns(height, width, self.head_channels, hidden.device)
        mixed = self.attention(hidden.flatten(2, 3).flatten(0, 1), turns=turns)
        hidden = hidden + mixed.reshape(hidden.shape)
        return hidden + self.feed_forward(hidden)


class WindowSpatialBlock(nn.Module):
    """Every position of a frame attends to those of its window: (B, T, H, W, C)."""

    def __init__(self, shape: OmniShape) -> None:
        super().__init__()
        self.attention = WindowAttention(shape.width, shape.heads, shape.window_size)
        self.feed_forward = GatedFeedForward(shape.width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attention(hidden.flatten(0, 1)).reshape(hidden.shape)
        return hidden + self.feed_forward(hidden)


class TemporalBlock(nn.Module):
    """Every position attends to itself in its own and earlier frames: (B, T, H, W, C)."""

    def __init__(self, shape: OmniShape) -> None:
        super().__init__()
        self.positions = CausalPositions(shape.width)
        self.attention = UnitAttention(shape.width, shape.heads)
        self.feed_forward = GatedFeedForward(shape.width)
        self.heads = shape.heads

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.positions(hidden)
        lines = hidden.movedim(1, 3)  # (B, H, W, T, C)
        bias = causal_linear_bias(lines.shape[3], self.heads, hidden.device)
        mixed = self.attention(lines.flatten(0, 2), bias=bias)
        hidden = hidden + mixed.reshape(lines.shape).movedim(3, 1)
        return hidden + self.feed_forward(hidden)


def spatial_transformer(shape: OmniShape) -> nn.Sequential:
    """Return the blocks over space, and a layer norm."""
    kinds = {"full": FullSpatialBlock, "window": WindowSpatialBlock}
    blocks = [kinds[block](shape) for block in shape.spatial_blocks]
    return nn.Sequential(*blocks, nn.LayerNorm(shape.width, bias=False))


def temporal_transformer(shape: OmniShape) -> nn.Sequential:
    """Return the blocks over time, and a layer norm."""
    blocks = [TemporalBlock(shape) for _ in range(shape.temporal_blocks)]
    return nn.Sequential(*blocks, nn.LayerNorm(shape.width, bias=False))
