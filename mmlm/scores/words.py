"""What counts as a word of a caption, and runs of words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

NGram = tuple[str, ...]


def words(caption: str) -> list[str]:
    """Return the words of a caption in lower case, without punctuation."""
    return re.findall(r"\w+(?:['’-]\w+)*", caption.lower())


def ngrams(tokens: Sequence[str], n: int) -> Counter[NGram]:
    """Return how often each run of `n` tokens occurs."""
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))
