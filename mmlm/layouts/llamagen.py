"""The picture block of LlamaGen: the visual tokens alone, in raster order, after the prefix that they depend on.

Paper: Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation (Sun et al., 2024), arXiv:2406.06525,
sections 2.2 and 2.3.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mmlm.layouts.base import FixedGridConfig, Grid, Layout


@dataclass(kw_only=True)
class LlamaGenLayoutConfig(FixedGridConfig):
    """The one grid; there are no tokens but visual ones."""


class LlamaGenLayout(Layout):
    """height · width visual tokens, nothing before, between or after them.

    The prefix is the caption, or a class by its name: LlamaGen's class embedding is one token, its caption 120 features
    of a T5; in a language model both are text. Two pictures may stand side by side: each has the one size.
    """

    Config = LlamaGenLayoutConfig

    @property
    def start_id(self) -> int:
        raise AttributeError("a block of this layout has no token that opens it: see start_slot")

    @property
    def start_slot(self) -> int:
        return self.picture_row(self.config.width)[0]

    def build_template(self, height: int, width: int) -> list[int]:
        self.config.check_size(height, width)
        return self.picture_row(height * width)

    def read_grid(self, token_ids: Tensor, start: int) -> Grid:
        return self.config.height, self.config.width
