"""BLEU of a set of captions, by sacrebleu.

Papers: BLEU: a Method for Automatic Evaluation of Machine Translation (Papineni et al., 2002); A Call for Clarity in
Reporting BLEU Scores (Post, 2018), arXiv:1804.08771, whose program this calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visual_tokenizer.errors import UserError

PACKAGE = "sacrebleu"


class MissingPackageError(UserError, ModuleNotFoundError):
    """BLEU's package is not installed."""


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]], longest: int = 4) -> tuple[float, str]:
    """Return the corpus BLEU, 0 to 100, in lower case, and sacrebleu's signature of how it was computed.

    Args:
        captions: one a picture, P of them.
        references: one or more a picture.
        longest: longest runs of words that are compared; captions of fewer words need a smaller one.

    Raises:
        MissingPackageError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        raise MissingPackageError(
            f"BLEU is computed by the package {PACKAGE}: `pip install {PACKAGE}` brings it, or the extra mmlm[captions]"
        ) from error
    metric = BLEU(lowercase=True, max_ngram_order=longest)
    most = max(map(len, references))
    # sacrebleu wants streams: the first references of all pictures, then the second ones, …
    streams: list[Any] = [[own[place] if place < len(own) else None for own in references] for place in range(most)]
    score = metric.corpus_score(list(captions), streams)
    return float(score.score), str(metric.get_signature())
