"""A slice of the codes' channels: the part of a code that a semantic loss is for."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Len
from torch import Tensor

from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Growing

Channels = Annotated[list[Annotated[int, Ge(0)]], Len(2, 2), Growing()]
"""The first channel and the one after the last."""


def code_channels(codes: Tensor, channels: list[int]) -> Tensor:
    """Return `codes[:, :, first:last]` of (B, N, C) codes.

    Raises:
        ValueError: `last` is more than C.
    """
    first, last = channels
    if last > codes.shape[2]:
        raise UserError(f"channels must end at {codes.shape[2]} (the quantizer's code_dim) or before, got {channels}")
    return codes[:, :, first:last]
