"""Pictures as causal 1-D sequences between two marks, of one length or of as many as the picture needs.

Papers: Planting a SEED of Vision in Large Language Model (Ge et al., 2023), arXiv:2307.08041 (32 tokens);
Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization (Jin et al., 2023),
arXiv:2309.04669 (LaVIT: as many tokens as the selector keeps, then the end token).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Interval
from torch import Tensor

from mmlm.layouts.base import END_OF_SEQUENCE, Grid, Layout, LayoutConfig, MalformedSequenceError
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class SequenceLayoutConfig(LayoutConfig):
    """The two marks (SEED's names; LaVIT has `[IMG]` and `[/IMG]`) and the lengths."""

    begin_image_token: str = "<img>"
    """Opens a block."""
    end_image_token: str = "</img>"
    """Closes a block."""
    min_length: Annotated[int, Ge(0)] = 0
    """Fewest positions of a picture; 0: as many as `max_length`, or 1 where the visual tokenizer gives as many as a
    picture needs."""
    max_length: Annotated[int, Ge(0)] = 0
    """Most positions of a picture; 0: as many as the visual tokenizer gives at its image_size."""
    grid_rank: Annotated[int, Interval(ge=1, le=3)] = 1
    """Dimensions of the visual tokenizer's token grid: 1; pictures with rows need another layout."""

    ranks: ClassVar[Mapping[int, str]] = {1: "sequence"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length and self.min_length > self.max_length:
            raise UserError(f"min_length must be at most max_length = {self.max_length}, got {self.min_length}")

    def for_grid(self, grid: Grid) -> SequenceLayoutConfig:
        most = self.max_length or grid[-1]
        return dataclasses.replace(self, grid_rank=len(grid), max_length=most, min_length=self.min_length or most)

    def for_lengths(self, most: int) -> SequenceLayoutConfig:
        return dataclasses.replace(self, max_length=self.max_length or most, min_length=self.min_length or 1)


class SequenceLayout(Layout):
    """`<img>` + N positions in causal order + `</img>`, min_length <= N <= max_length."""

    Config = SequenceLayoutConfig

    @property
    def start_id(self) -> int:
        return self.structural_ids[self.config.begin_image_token]

    @property
    def end_id(self) -> int:
        """Id of the token that closes a block."""
        return self.structural_ids[self.config.end_image_token]

    @property
    def lengths(self) -> range:
        """The lengths that a picture may have."""
        return range(self.config.min_length, self.config.max_length + 1)

    def build_template(self, height: int, width: int) -> list[int]:
        if width not in self.lengths:
            raise UserError(
                f"a picture has {self.config.min_length} to {self.config.max_length} positions in this layout, "
                f"got {width}"
            )
        return [self.start_id, *self.picture_row(width), self.end_id]

    def read_grid(self, token_ids: Tensor, start: int) -> Grid:
        books = self.vocabulary.num_codebooks
        last = (self.config.max_length + books - 1) * books  # of any pattern: delay's is the longest
        ahead = token_ids[start + 1 : start + 2 + last]
        ends = (ahead == self.end_id).nonzero()
        if not len(ends):
            at = start + 1 + min(len(ahead), last)
            found = self.name_of(int(token_ids[at])) if at < len(token_ids) else END_OF_SEQUENCE
            raise MalformedSequenceError(at, self.name_of(self.end_id), found)
        length = int((self.vocabulary.codebook_of(ahead[: int(ends[0])]) == 0).sum())
        if length not in self.lengths:
            wanted = (
                f"{self.config.min_length} to {self.config.max_length} positions before {self.name_of(self.end_id)}"
            )
            raise MalformedSequenceError(start + 1 + int(ends[0]), wanted, f"{length}")
        return 1, length
