"""What a recipe says of the transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from visual_tokenizer.errors import UserError


def check(is_true: bool, name: str, rule: str, value: Any) -> None:
    """Raise unless `is_true`, naming field, rule and value."""
    if not is_true:
        raise UserError(f"{name} must be {rule}, got {value!r}")


@dataclass(kw_only=True)
class BeitSection:
    """The transformer, as transformers' BeitConfig has it; the defaults are ViT-B/16's."""

    patch_size: int = 16
    """Side of a patch in pixels; divides image_size."""

    hidden_size: int = 768
    """Channels; a multiple of heads."""

    layers: int = 12
    """Transformer blocks; 1 or more."""

    heads: int = 12
    """Attention heads; 1 or more."""

    intermediate_size: int = 3072
    """Channels inside the feed-forward layers; 1 or more."""

    layer_scale: float = 0.1
    """Where the scales of the residual branches begin (CaiT, arXiv:2103.17239); 0 for none."""

    drop_path: float = 0.1
    """Chance to leave out a residual branch of the last block, falling to 0 at the first; in [0, 1)."""

    relative_positions: bool = True
    """Learned biases of attention by relative position, shared by all blocks."""

    absolute_positions: bool = False
    """Learned embeddings of the positions, added to the patches."""

    def __post_init__(self) -> None:
        for name in ("patch_size", "hidden_size", "layers", "heads", "intermediate_size"):
            check(getattr(self, name) >= 1, f"model.{name}", "1 or more", getattr(self, name))
        check(
            self.hidden_size % self.heads == 0,
            "model.hidden_size",
            f"a multiple of {self.heads} (heads)",
            self.hidden_size,
        )
        check(self.layer_scale >= 0, "model.layer_scale", "0 or more", self.layer_scale)
        check(0 <= self.drop_path < 1, "model.drop_path", "in [0, 1)", self.drop_path)
        check(
            self.relative_positions or self.absolute_positions,
            "model.relative_positions",
            "true where absolute_positions is false: masked patches would not know where they are",
            self.relative_positions,
        )


@dataclass(kw_only=True)
class PatchAggregationSection:
    """BEiT v2's second prediction, from the class token and the patches of an earlier block."""

    layer: int = 9
    """Block whose patches are taken, counted from 1; before the last."""

    head_layers: int = 2
    """Transformer blocks of the second head, which is dropped after the training; 1 or more."""

    def __post_init__(self) -> None:
        for name in ("layer", "head_layers"):
            check(getattr(self, name) >= 1, f"patch_aggregation.{name}", "1 or more", getattr(self, name))
