"""The picture block of Chameleon: a fixed number of visual tokens between two marks (arXiv 2405.09818)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mmlm.layouts.base import FixedGridConfig, Grid, Layout
from visual_tokenizer.errors import UserError

NAME_PREFIX = "IMGIMG"
NAME_END = "Z"
LETTER_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")


@dataclass(kw_only=True)
class ChameleonLayoutConfig(FixedGridConfig):
    """The two marks; a block writes no size."""

    begin_image_token: str = "<racm3:break>"
    """Opens a block."""
    end_image_token: str = "<eoss>"
    """Closes a block."""


class ChameleonLayout(Layout):
    """`<racm3:break>` + height · width visual tokens in raster order + `<eoss>`.

    A user's turn ends with the tokenizer's separator, `<reserved08706>` in the published one: see `end_of_turn_ids`.
    """

    Config = ChameleonLayoutConfig

    @property
    def start_id(self) -> int:
        return self.structural_ids[self.config.begin_image_token]

    def build_template(self, height: int, width: int) -> list[int]:
        self.config.check_size(height, width)
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
        raise UserError(f"the vocabulary's {len(table)} image names are not the indices 0 … {len(table) - 1}")
    return [table[index] for index in range(len(table))]
