"""What a recipe says of the transformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Interval

from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Section


@dataclass(kw_only=True)
class BeitSection(Section):
    """The transformer, as transformers' BeitConfig has it; the defaults are ViT-B/16's."""

    patch_size: Annotated[int, Ge(1)] = 16
    """Side of a patch in pixels; divides image_size."""

    hidden_size: Annotated[int, Ge(1)] = 768
    """Channels; a multiple of heads."""

    layers: Annotated[int, Ge(1)] = 12
    """Transformer blocks."""

    heads: Annotated[int, Ge(1)] = 12
    """Attention heads."""

    intermediate_size: Annotated[int, Ge(1)] = 3072
    """Channels inside the feed-forward layers."""

    layer_scale: Annotated[float, Ge(0)] = 0.1
    """Where the scales of the residual branches begin (CaiT, arXiv:2103.17239); 0 for none."""

    drop_path: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Chance to leave out a residual branch of the last block, falling to 0 at the first."""

    relative_positions: bool = True
    """Learned biases of attention by relative position, shared by all blocks."""

    absolute_positions: bool = False
    """Learned embeddings of the positions, added to the patches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.heads:
            raise UserError(f"hidden_size must be a multiple of {self.heads} (heads), got {self.hidden_size}")
        if not self.relative_positions and not self.absolute_positions:
            raise UserError(
                "relative_positions must be true where absolute_positions is false: masked patches would not know "
                "where they are"
            )


@dataclass(kw_only=True)
class PatchAggregationSection(Section):
    """BEiT v2's second prediction, from the class token and the patches of an earlier block."""

    layer: Annotated[int, Ge(1)] = 9
    """Block whose patches are taken, counted from 1; before the last."""

    head_layers: Annotated[int, Ge(1)] = 2
    """Transformer blocks of the second head, which is dropped after the training."""
