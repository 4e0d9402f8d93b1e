"""A slice of the codes' channels: the part of a code that a semantic loss is for."""

from __future__ import annotations

from torch import Tensor

from visual_tokenizer.errors import UserError


def check_channels(channels: list[int]) -> None:
    """Raise ValueError unless `channels` is [first, last] with 0 ≤ first < last."""
    if len(channels) != 2 or not 0 <= channels[0] < channels[1]:
        raise UserError(f"channels must be [first, last] with 0 <= first < last, got {channels}")


def code_channels(codes: Tensor, channels: list[int]) -> Tensor:
    """Return `codes[:, :, first:last]` of (B, N, C) codes.

    Raises:
        ValueError: `last` is more than C.
    """
    first, last = channels
    if last > codes.shape[2]:
        raise UserError(f"channels must end at {codes.shape[2]} (the quantizer's code_dim) or before, got {channels}")
    return codes[:, :, first:last]
