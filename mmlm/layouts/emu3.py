"""The picture and clip block of Emu3: size in text, rows with ends, frames with ends.

Paper: Emu3: Next-Token Prediction is All You Need (Wang et al., 2024), arXiv:2409.18869, section 2.3.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmlm.layouts.base import END_OF_SEQUENCE, Grid, Layout, LayoutConfig, MalformedSequenceError
from visual_tokenizer.errors import UserError

LONGEST_SIZE_TEXT = 32
SIZE_TEXT = re.compile(r"([1-9]\d{0,5})\*([1-9]\d{0,5})(?:\*([1-9]\d{0,5}))?", flags=re.ASCII)
VISUAL_NAME = re.compile(r"<\|visual token (\d{6,})\|>", flags=re.ASCII)


@dataclass(kw_only=True)
class Emu3LayoutConfig(LayoutConfig):
    """Names of the structural tokens; the defaults are the published ones."""

    image_start_token: str = "<|image start|>"
    """Opens a block; the size in text follows."""
    image_end_token: str = "<|image end|>"
    """Closes a block."""
    image_token: str = "<|image token|>"
    """Stands between the size and the first visual token."""
    end_of_row_token: str = "<|extra_200|>"
    """Follows every row of visual tokens, the last one too."""
    end_of_frame_token: str = "<|extra_201|>"
    """Follows the last row of every frame; a picture is one frame."""

    ranks: ClassVar[Mapping[int, str]] = {1: "sequence", 2: "rows and columns", 3: "clips beside pictures"}

    def for_grid(self, grid: Grid) -> Emu3LayoutConfig:
        beside_clips = self.grid_rank == 3 and len(grid) == 2
        return dataclasses.replace(self, grid_rank=3 if beside_clips else len(grid))


class Emu3Layout(Layout):
    """`<|image start|>` H`*`W `<|image token|>` row₁ EOL … row_H EOL EOF `<|image end|>`.

    H and W count visual tokens and are written as text digits. A tokenizer without rows has H = 1 and W = N.

    A clip writes H`*`W`*`T and has T such frames, each with its EOF. The paper names resolution, frame rate and
    duration as what is written before a clip, but no format; T is the number of frames of tokens.
    """

    Config = Emu3LayoutConfig

    def _id(self, field: str) -> int:
        return self.structural_ids[getattr(self.config, field)]

    @property
    def start_id(self) -> int:
        return self._id("image_start_token")

    def build_template(self, height: int, width: int) -> list[int]:
        return self._frames(f"{height}*{width}", 1, height, width)

    def build_clip_template(self, frames: int, height: int, width: int) -> list[int]:
        return self._frames(f"{height}*{width}*{frames}", frames, height, width)

    def _frames(self, size: str, frames: int, height: int, width: int) -> list[int]:
        row = [*self.picture_row(width), self._id("end_of_row_token")]
        frame = [*row * height, self._id("end_of_frame_token")]
        header = [self.start_id, *self.text_ids(size), self._id("image_token")]
        return [*header, *frame * frames, self._id("image_end_token")]

    def read_grid(self, token_ids: Tensor, start: int) -> Grid:
        ahead = token_ids[start + 1 : start + 1 + LONGEST_SIZE_TEXT]
        ours = self.is_picture_token(ahead).tolist()
        length = ours.index(True) if True in ours else len(ours)
        clips = " or 'H*W*T'" if self.config.grid_rank == 3 else ""
        expected = f"the size as text, 'H*W'{clips}, and {self.config.image_token!r}"
        if length == len(ours) or int(ahead[length]) != self._id("image_token"):
            at = start + 1 + length
            found = self.name_of(int(token_ids[at])) if at < len(token_ids) else END_OF_SEQUENCE
            raise MalformedSequenceError(at, expected, found)
        digits = ahead[:length].tolist()
        text = "".join(str(self.tokenizer.decode(digits)).split())  # some tokenizers set spaces between or before
        size = SIZE_TEXT.fullmatch(text)
        if size is None or self.text_ids(size[0]) != digits or (size[3] and self.config.grid_rank != 3):
            raise MalformedSequenceError(start + 1, expected, f"the text {text!r}")
        if self.config.grid_rank == 1 and size[1] != "1":
            raise MalformedSequenceError(start + 1, "one row, '1*N'", f"the text {text!r}")
        frame = int(size[1]), int(size[2])
        return (int(size[3]), *frame) if size[3] else frame


def published_table(vocabulary_map: Mapping[str, int]) -> list[int]:
    """Return the ids of the published Emu3 vocabulary in index order, for `VisualVocabulary(table=…)`.

    Names are `<|visual token ` + the index in six digits + `|>`.

    Raises:
        ValueError: the names are not exactly the indices 0 … K-1.
    """
    found = {VISUAL_NAME.fullmatch(name): token_id for name, token_id in vocabulary_map.items()}
    table = {int(match[1]): token_id for match, token_id in found.items() if match is not None}
    if not table or sorted(table) != list(range(len(table))):
        raise UserError(f"the vocabulary's {len(table)} visual names are not the indices 0 … {len(table) - 1}")
    return [table[index] for index in range(len(table))]
