"""No update: the codes stay what the initializer made of them, as the colour palette of image GPT does.

Paper: Generative Pretraining from Pixels (Chen et al., 2020), section 3.2: a palette of 512 colours found by k-means.
"""

from __future__ import annotations

from dataclasses import dataclass

from visual_tokenizer.codebooks.updates.base import Update, UpdateConfig


@dataclass(kw_only=True)
class FrozenConfig(UpdateConfig):
    """A frozen codebook has no fields."""


class Frozen(Update):
    """Nothing moves."""

    Config = FrozenConfig
    trains_by_gradient = False
