"""The transformer of TiTok: CLIP's ViT with normalisation before the first block.

Paper: An Image is Worth 32 Tokens for Reconstruction and Generation (Yu et al., 2024), arXiv:2406.07550, section 3.2;
blocks as in OpenCLIP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from visual_tokenizer.layers.shape import QueryShape
from visual_tokenizer.layers.transformer import TransformerBlock


@dataclass(kw_only=True)
class TiTokShape(QueryShape):
    """Widths and depths of one of TiTok's transformers; the defaults are TiTok-L's."""

    width: Annotated[int, Ge(1)] = 1024
    depth: Annotated[int, Ge(1)] = 24
    heads: Annotated[int, Ge(1)] = 16

    patch_size: Annotated[int, Ge(1)] = 16
    """Side of a patch in pixels."""


class CLIPBlock(TransformerBlock):
    """A block with the exact GELU."""

    gelu = "none"


class CLIPTransformer(nn.Module):
    """A norm, and blocks; the norm after them is up to whoever knows which tokens are kept."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.norm_before = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(CLIPBlock(width, heads) for _ in range(depth)))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.blocks(self.norm_before(hidden))
