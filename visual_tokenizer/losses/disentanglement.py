"""Codes of different codebooks are kept from pointing the same way (FQGAN).

Paper: Factorized Visual Tokenization and Generation (Bai et al., 2024), arXiv:2411.16681, section 3.2, and the authors'
code: the mean of the squared cosine of two codes of a position, on the straight-through outputs. For the quantizer
`product`, whose groups are slices of the code; `multi_head` has the same term within.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.errors import UserError
from visual_tokenizer.losses.base import Loss, LossConfig
from visual_tokenizer.outputs import TokenizerOutput


@dataclass(kw_only=True)
class DisentanglementConfig(LossConfig):
    """Fields of the disentanglement; FQGAN's `weight` is 0.1."""

    groups: Annotated[int, Ge(2)] = 2
    """Equal slices of the code's channels that are compared pair by pair."""


class Disentanglement(Loss):
    """cos², averaged over positions and pairs of groups."""

    Config = DisentanglementConfig

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean squared cosine, a float32 scalar in [0, 1].

        Raises:
            ValueError: the code's channels are no multiple of `groups`.
        """
        channels = output.codes.shape[2]
        if channels % self.config.groups:
            raise UserError(f"groups must divide the code's {channels} channels, got {self.config.groups}")
        parts = F.normalize(output.codes.float().unflatten(2, (self.config.groups, -1)), dim=3)
        pairs = combinations(range(self.config.groups), 2)
        cosines = torch.stack([(parts[:, :, one] * parts[:, :, other]).sum(2) for one, other in pairs])
        squares = cosines.square()
        return squares.mean() if output.present is None else squares.sum() / (len(cosines) * output.present.sum())
