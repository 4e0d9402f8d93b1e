"""The picture block of Emu3: size in text, rows with ends, end of frame (arXiv 2409.18869)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from mmlm.layouts.base import END_OF_SEQUENCE, Grid, Layout, LayoutConfig, MalformedSequenceError

LONGEST_SIZE_TEXT = 32
SIZE_TEXT = re.compile(r"([1-9]\d{0,5})\*([1-9]\d{0,5})", flags=re.ASCII)


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
    """Follows the last row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.structural_tokens()
        if len(set(names)) != len(names) or not all(names):
            raise ValueError(f"the structural tokens must be five different names, got {names}")


class Emu3Layout(Layout):
    """`<|image start|>` H`*`W `<|image token|>` row₁ EOL … row_H EOL EOF `<|image end|>`.

    H and W count visual tokens and are written as text digits. A tokenizer without rows has H = 1 and W = N.
    """

    Config = Emu3LayoutConfig

    def _id(self, field: str) -> int:
        return self.structural_ids[getattr(self.config, field)]

    @property
    def start_id(self) -> int:
        return self._id("image_start_token")

    def build_template(self, height: int, width: int) -> list[int]:
        row = [*self.picture_row(width), self._id("end_of_row_token")]
        return [
            self.start_id,
            *self.text_ids(f"{height}*{width}"),
            self._id("image_token"),
            *row * height,
            self._id("end_of_frame_token"),
            self._id("image_end_token"),
        ]

    def read_grid(self, token_ids: Tensor, start: int) -> Grid:
        ahead = token_ids[start + 1 : start + 1 + LONGEST_SIZE_TEXT]
        ours = self.is_picture_token(ahead).tolist()
        length = ours.index(True) if True in ours else len(ours)
        expected = f"the size as text, 'H*W', and {self.config.image_token!r}"
        if length == len(ours) or int(ahead[length]) != self._id("image_token"):
            at = start + 1 + length
            found = self.name_of(int(token_ids[at])) if at < len(token_ids) else END_OF_SEQUENCE
            raise MalformedSequenceError(at, expected, found)
        digits = ahead[:length].tolist()
        text = "".join(str(self.tokenizer.decode(digits)).split())  # some tokenizers set spaces between or before
        size = SIZE_TEXT.fullmatch(text)
        if size is None or self.text_ids(f"{size[1]}*{size[2]}") != digits:
            raise MalformedSequenceError(start + 1, expected, f"the text {text!r}")
        if self.config.grid_rank == 1 and size[1] != "1":
            raise MalformedSequenceError(start + 1, "one row, '1*N'", f"the text {text!r}")
        return int(size[1]), int(size[2])
