"""CIDEr-D: agreement of a caption with references in n-grams weighted by how rare they are.

Paper: CIDEr: Consensus-based Image Description Evaluation (Vedantam et al., 2015), arXiv:1411.5726, eq. 1, 2 and, for
CIDEr-D, section 8. The published program stems no words, and neither does this one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from mmlm.scores.words import NGram, ngrams, words
from visual_tokenizer.errors import UserError

LONGEST = 4
"""N, the longest runs of words."""
SIGMA = 6.0
"""Of the Gaussian penalty for a difference in length, in words."""
SCALE = 10.0
"""The factor of CIDEr-D."""

Vector = dict[NGram, float]


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return the CIDEr-D of each caption, 0 to 10.

    How rare a run of words is follows from the references given: log(P / pictures whose references hold it), so that
    the score of a caption depends on all P pictures, and with one picture alone it is 0.

    Args:
        captions: one a picture, P of them.
        references: one or more a picture.

    Raises:
        ValueError: lengths that differ, or a picture without a reference.
    """
    if len(captions) != len(references) or not all(references):
        raise UserError(
            f"references must be one list of one or more for each of the {len(captions)} captions, "
            f"got {len(references)}, {sum(not own for own in references)} of them empty"
        )
    rarest = math.log(max(1, len(references)))
    rarities = [_rarity(references, n) for n in range(1, LONGEST + 1)]
    scores = []
    for caption, own in zip(captions, references, strict=True):
        tokens = words(caption)
        total = 0.0
        for n, rarity in enumerate(rarities, 1):
            total += sum(_agreement(tokens, words(text), n, rarity, rarest) for text in own)
        scores.append(SCALE * total / (LONGEST * len(own)))
    return scores


def _rarity(references: Sequence[Sequence[str]], n: int) -> Vector:
    """Return log(P / pictures) of each run of `n` words that the references hold."""
    pictures: Counter[NGram] = Counter()
    for own in references:
        pictures.update({run for text in own for run in ngrams(words(text), n)})
    return {run: math.log(len(references) / count) for run, count in pictures.items()}


def _weighted(tokens: Sequence[str], n: int, rarity: Vector, rarest: float) -> Vector:
    """Return the counts of runs times their rarity; one that no reference holds counts as one of a single picture."""
    return {run: count * rarity.get(run, rarest) for run, count in ngrams(tokens, n).items()}


def _agreement(tokens: Sequence[str], reference: Sequence[str], n: int, rarity: Vector, rarest: float) -> float:
    """Return the clipped cosine of a caption's runs with a reference's, times the penalty for another length."""
    vector, wanted = (_weighted(one, n, rarity, rarest) for one in (tokens, reference))
    length = math.sqrt(sum(value**2 for value in vector.values()) * sum(value**2 for value in wanted.values()))
    if not length:
        return 0.0
    product = sum(min(value, wanted[run]) * wanted[run] for run, value in vector.items() if run in wanted)
    return product / length * math.exp(-((len(tokens) - len(reference)) ** 2) / (2 * SIGMA**2))
