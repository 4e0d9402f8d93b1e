"""The picture block of Chameleon: a fixed number of visual tokens between two marks (arXiv 2405.09818)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mmlm.layouts.base import Grid, GridError, Layout, LayoutConfig

NAME_PREFIX = "IMGIMG"
NAME_END = "Z"
LETTER_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")


@dataclass(kw_only=True)
class ChameleonLayoutConfig(LayoutConfig):
    """The two marks and the one grid; a block writes no size, so every picture has the same."""

    begin_image_token: str = "<racm3:break>"
    """Opens a block."""
    end_image_token: str = "<eoss>"
    """Closes a block."""
    height: int = 0
    """Token rows of every picture; 0: those of the visual tokenizer at its image_size."""
    width: int = 0
    """Token columns of every picture; 0: those of the visual tokenizer at its image_size."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.begin_image_token == self.end_image_token:
            raise ValueError(f"begin_image_token and end_image_token must differ, got {self.end_image_token!r}")
        if self.height < 0 or self.width < 0 or (self.height == 0) != (self.width == 0):
            raise ValueError(
                f"height and width must both be 0 or both be 1 or more, got {self.height} and {self.width}"
            )

    def for_grid(self, grid: Grid) -> ChameleonLayoutConfig:
        height, width = grid if len(grid) == 2 else (1, grid[0])
        if self.height:
            height, width = self.height, self.width
        return dataclasses.replace(self, grid_rank=len(grid), height=height, width=width)


class ChameleonLayout(Layout):
    """`<racm3:break>` + height · width visual tokens in raster order + `<eoss>`."""

    Config = ChameleonLayoutConfig

    @property
    def start_id(self) -> int:
        return self.structural_ids[self.config.begin_image_token]

    def build_template(self, height: int, width: int) -> list[int]:
        if (height, width) != (self.config.height, self.config.width):
            raise GridError(
                f"this layout writes no size: every picture has {self.config.height} x {self.config.width} "
                f"tokens, got {height} x {width}"
            )
        end = self.structural_ids[self.config.end_image_token]
        return [self.start_id, *self.picture_row(height * width), end]

    def read_grid(self, token_ids: Tensor, start: int) -> Grid:
        return self.config.height, self.config.width


def published_table(vocabulary_map: Mapping[str, int]) -> list[int]:
    """Return the ids of the published Chameleon vocabulary in index order, for `VisualVocabulary(table=…)`.

    Names are `IMGIMG` + the index in letters (A = 0 … J = 9) + `Z`; the id order is not the index order.

    Raises:
        ValueError: the names are not exactly the indices 0 … K-1.
    """
    table = {
        int(name[len(NAME_PREFIX) : -len(NAME_END)].translate(LETTER_DIGITS)): token_id
        for name, token_id in vocabulary_map.items()
        if name.startswith(NAME_PREFIX) and name.endswith(NAME_END)
    }
    if not table or sorted(table) != list(range(len(table))):
        raise ValueError(f"the vocabulary's {len(table)} image names are not the indices 0 … {len(table) - 1}")
    return [table[index] for index in range(len(table))]
