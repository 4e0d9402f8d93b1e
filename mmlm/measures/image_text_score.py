"""How well drawings fit their captions, by a published model of pictures and texts (CLIP, SigLIP).

Papers: Learning Transferable Visual Models From Natural Language Supervision (Radford et al., 2021), arXiv:2103.00020;
CLIPScore (Hessel et al., 2021), arXiv:2104.08718, which is 2.5 times the cosine, cut at 0; here it is the cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mmlm.generation.best_of import Candidate, ImageTextSimilarity
from mmlm.measures.base import Findings, Measure, MeasureConfig, Pairs, Subject
from mmlm.scores.image_text_model import load_image_text_model


@dataclass(kw_only=True)
class ImageTextScoreConfig(MeasureConfig):
    """Configures the score."""

    weights: str
    """Folder of a transformers model of pictures and texts, or its name on the hub: openai/clip-vit-base-patch32, …"""


class ImageTextScore(Measure):
    """Mean cosine of pictures and captions: of drawings, reconstructions, originals, and originals one place on."""

    Config = ImageTextScoreConfig

    def measure(self, subject: Subject) -> Findings:
        scorer = load_image_text_model(self.config.weights, subject.model.device)
        values: dict[str, Any] = {"model": self.config.weights}
        rows = []
        for split in subject.splits:
            pairs = subject.pairs(split)
            sets = subject.compared(split) | {"other_originals": [*pairs.images[1:], pairs.images[0]]}
            values[split] = {"pictures": len(pairs)} | {
                name: mean_score(scorer, images, pairs, subject.batch_size) for name, images in sets.items()
            }
            rows += [(f"{name.replace('_', ' ')}, {split}", f"cosine {values[split][name]:.4f}") for name in sets]
        return Findings(values, rows)


def mean_score(scorer: ImageTextSimilarity, images: Sequence[Image.Image], pairs: Pairs, batch_size: int) -> float:
    """Return the mean cosine of pictures with the captions of `pairs`."""
    candidates = [Candidate(*one) for one in zip(images, pairs.indices, pairs.captions, strict=True)]
    parts = (candidates[start : start + batch_size] for start in range(0, len(candidates), batch_size))
    return sum(sum(scorer(part)) for part in parts) / len(candidates)
