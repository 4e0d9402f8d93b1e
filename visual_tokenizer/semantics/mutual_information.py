"""What a token says about the class of its picture.

Source: Introduction to Information Retrieval (Manning et al., 2008), section 16.3: normalised mutual information.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visual_tokenizer.semantics._shuffled import CodeClassConfig, CodeClassMeasure


@dataclass(kw_only=True)
class MutualInformationConfig(CodeClassConfig):
    """Fields of the mutual information."""


class MutualInformation(CodeClassMeasure):
    """2 I(code; class) / (H(code) + H(class)) over tokens, a mean over codebooks, as `mutual_information_tokens`.

    With few tokens it is above 0 by chance, which shuffled classes show.
    """

    Config = MutualInformationConfig

    def of_tokens(self, codes: np.ndarray, classes: np.ndarray) -> float:
        from sklearn.metrics import normalized_mutual_info_score

        if (codes == codes[0]).all():  # says nothing, whatever the classes
            return 0.0
        return normalized_mutual_info_score(classes, codes)
