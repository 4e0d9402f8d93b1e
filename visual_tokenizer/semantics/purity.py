"""Does a code stand for one class?

Source: Introduction to Information Retrieval (Manning et al., 2008), section 16.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visual_tokenizer.semantics._shuffled import CodeClassConfig, CodeClassMeasure


@dataclass(kw_only=True)
class PurityConfig(CodeClassConfig):
    """Fields of the purity."""


class Purity(CodeClassMeasure):
    """Share of a code's tokens that are of its commonest class, a mean over used codes, as `purity_tokens`.

    Codes are weighted by their tokens, codebooks alike. Rare codes are pure by chance, so the value means something
    only beside that of shuffled classes.
    """

    Config = PurityConfig

    def of_tokens(self, codes: np.ndarray, classes: np.ndarray) -> float:
        from sklearn.metrics.cluster import contingency_matrix

        return contingency_matrix(classes, codes, sparse=True).max(0).sum() / len(codes)
