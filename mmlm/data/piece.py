"""Stretches of a training sequence, and what their tokens are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Piece(NamedTuple):
    """Text, a picture, or tokens of the layout or a chat template."""

    kind: int
    """A place in `KINDS`."""
    is_trained: bool
    """Whether its tokens count in the loss."""
    ids: Sequence[int] | np.ndarray
    """Token ids; none for a picture."""
    picture: int = -1
    """Which of the document's pictures it is; -1: none."""
