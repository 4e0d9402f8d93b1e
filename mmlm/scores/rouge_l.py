"""ROUGE-L: the longest common subsequence of words of a caption and a reference.

Paper: ROUGE: A Package for Automatic Evaluation of Summaries (Lin, 2004), section 3.1, with β = 1.2 as for captions
(Chen et al., 2015, arXiv:1504.00325).
"""

from __future__ import annotations

from collections.abc import Sequence

from mmlm.scores.words import words
from visual_tokenizer.errors import UserError

BETA = 1.2
"""Weight of recall against precision."""


def rouge_l(caption: str, references: Sequence[str]) -> float:
    """Return F of the best recall and the best precision over the references, in [0, 1].

    Raises:
        ValueError: no reference.
    """
    if not references:
        raise UserError("references must hold one text or more, got none")
    tokens = words(caption)
    wanted = [words(reference) for reference in references]
    shared = [longest_common_subsequence(tokens, one) for one in wanted]
    if not any(shared):
        return 0.0
    precision = max(shared) / len(tokens)
    recall = max(count / len(one) for count, one in zip(shared, wanted, strict=True) if one)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return how many words stand in both in the same order, with others between them or not."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, 1):
            above = row[place]
            row[place] = diagonal + 1 if word == other else max(above, row[place - 1])
            diagonal = above
    return row[-1]
