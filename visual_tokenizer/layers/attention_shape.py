"""The rule for the widths of a transformer, which all parts that hold one share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visual_tokenizer.errors import UserError


def check_attention_shape(config: Any, counts: Sequence[str], *, has_sines: bool = False) -> None:
    """Check the fields of a config that say how large its transformer is.

    Args:
        config: with `width` and `heads`.
        counts: names of fields that must be 1 or more, in the order of the messages.
        has_sines: whether positions are sines and cosines of rows and columns, which fill a width by fours.

    Raises:
        ValueError: one of `counts` is below 1, or `width` does not fit the heads or the sines.
    """
    for name in counts:
        if getattr(config, name) < 1:
            raise UserError(f"{name} must be 1 or more, got {getattr(config, name)}")
    if config.width % config.heads or (has_sines and config.width % 4):
        also = " and of 4" if has_sines else ""
        raise UserError(f"width must be a multiple of heads ({config.heads}){also}, got {config.width}")
