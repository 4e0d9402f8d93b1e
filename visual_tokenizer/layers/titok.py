"""The transformer of TiTok: CLIP's ViT with normalisation before the first block.

Paper: An Image is Worth 32 Tokens for Reconstruction and Generation (Yu et al., 2024), arXiv:2406.07550, section 3.2;
blocks as in OpenCLIP.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.layers.attention_shape import check_attention_shape


@dataclass(kw_only=True)
class TiTokShape:
    """Widths and depths of one of TiTok's transformers; the defaults are TiTok-L's."""

    num_latents: int = 32
    """Tokens of a picture; 1 or more."""

    width: int = 1024
    """Channels of the transformer; a multiple of `heads`."""

    depth: int = 24
    """Transformer blocks; 1 or more."""

    heads: int = 16
    """Attention heads; 1 or more."""

    patch_size: int = 16
    """Side of a patch in pixels; 1 or more."""

    def __post_init__(self) -> None:
        check_attention_shape(self, ("num_latents", "width", "depth", "heads", "patch_size"))


class CLIPBlock(nn.Module):
    """Pre-norm self-attention and an exact GELU feed-forward of four times the width: (B, N, C) → (B, N, C)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        parts = self.query_key_value(self.attention_norm(hidden)).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        hidden = hidden + self.projection(mixed)
        return hidden + self.contract(F.gelu(self.expand(self.feed_forward_norm(hidden))))


class CLIPTransformer(nn.Module):
    """A norm, and blocks; the norm after them is up to whoever knows which tokens are kept."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.norm_before = nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(CLIPBlock(width, heads) for _ in range(depth)))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.blocks(self.norm_before(hidden))
