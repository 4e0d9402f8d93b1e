"""Pictures by their captions, and captions by their pictures.

The protocol of Flickr30K retrieval, recall at 1, 5 and 10 (Deep Visual-Semantic Alignments for Generating Image
Descriptions, Karpathy & Fei-Fei, 2014, arXiv:1412.2306, section 4.1). Here a linear map from tokens to a frozen text
encoder's space stands in for a trained alignment, so that every tokenizer can be measured alike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from visual_tokenizer.retrieval import topk_caption_accuracy
from visual_tokenizer.semantics._pictures import SemanticData
from visual_tokenizer.semantics._ridge import fit_ridge
from visual_tokenizer.semantics.base import SemanticMeasure, SemanticMeasureConfig


@dataclass(kw_only=True)
class TextRetrievalConfig(SemanticMeasureConfig):
    """Fields of the retrieval."""

    ranks: list[int] = field(default_factory=lambda: [1, 5, 10])
    """Numbers k of recall at k, each 1 or more."""

    def __post_init__(self) -> None:
        if not self.ranks or min(self.ranks) < 1:
            raise ValueError(f"ranks must be 1 or more, at least one, got {self.ranks}")


class TextRetrieval(SemanticMeasure):
    """Recall at k among held-out pictures and captions, as `text_to_image_r…` and `image_to_text_r…`.

    A ridge map from each view (codes and teacher standardised) to the captions' embeddings is fitted on the training
    pictures, its penalty chosen by leaving one out. Cosines are taken after the training captions' mean is subtracted
    from both sides. A picture is right whose caption is the same string; one of another caption that is exactly as near
    comes before it.
    """

    Config = TextRetrievalConfig
    needs = ("captions",)

    def measure(self, data: SemanticData) -> dict[str, float]:
        """Return the recalls of each view, and of a random order as chance."""
        captions, texts = list(data.heldout.captions), data.heldout.texts.double()
        values: dict[str, float] = {}
        for k in self.config.ranks:
            share = chance_of_recall(captions, k)
            values |= {f"text_to_image_r{k}_chance": share, f"image_to_text_r{k}_chance": share}
        for name, view in data.views.items():
            view = view.standardised()
            ridge = fit_ridge(view.train, data.train.texts.double())
            pictures, sentences = ridge(view.heldout) - ridge.target_mean, texts - ridge.target_mean
            for direction, queries, bank in (
                ("text_to_image", sentences, pictures),
                ("image_to_text", pictures, sentences),
            ):
                ranks = topk_caption_accuracy(queries, captions, bank, captions, k=1).ranks
                for k in self.config.ranks:
                    values[f"{direction}_r{k}_{name}"] = (ranks <= k).double().mean().item()
        return values


def chance_of_recall(captions: Sequence[str], k: int) -> float:
    """Return the recall at k of a random order, where some captions may stand at several pictures."""
    count = len(captions)
    same = Counter(captions)
    misses = {times: math.comb(count - times, min(k, count)) for times in set(same.values())}
    total = math.comb(count, min(k, count))
    return sum(times * (1 - misses[times] / total) for times in same.values()) / count
