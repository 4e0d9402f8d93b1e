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
from typing import Annotated

import torch
from annotated_types import Ge, Len
from torch import Tensor

from visual_tokenizer.retrieval import topk_caption_accuracy
from visual_tokenizer.semantics._text_space import to_text_space
from visual_tokenizer.semantics.base import SemanticData, SemanticMeasure, SemanticMeasureConfig, View


@dataclass(kw_only=True)
class TextRetrievalConfig(SemanticMeasureConfig):
    """Fields of the retrieval."""

    ranks: Annotated[list[Annotated[int, Ge(1)]], Len(1)] = field(default_factory=lambda: [1, 5, 10])
    """Numbers k of recall at k."""


class TextRetrieval(SemanticMeasure):
    """Recall at k among held-out pictures and captions, as `text_to_image_r…` and `image_to_text_r…`, and the mean of
    all these as `mean_recall`.

    A ridge map from each view (codes and teacher standardised) to the captions' embeddings is fitted on the training
    pictures, its penalty chosen by leaving one out. Cosines are taken after the training captions' mean is subtracted
    from both sides. A picture is right whose caption is the same string; one of another caption that is exactly as near
    comes before it.
    """

    Config = TextRetrievalConfig
    needs = ("captions",)

    def measure(self, data: SemanticData) -> dict[str, float]:
        """Return the recalls of each view, and of a random order as chance."""
        captions, ranks = list(data.heldout.captions), self.config.ranks
        shares = [chance_of_recall(captions, k) for k in ranks]
        values = {"mean_recall_chance": sum(shares) / len(shares)}
        for k, share in zip(ranks, shares, strict=True):
            values |= {f"text_to_image_r{k}_chance": share, f"image_to_text_r{k}_chance": share}
        for name, view in data.views.items():
            found = recalled(view, data, ranks)
            for direction, hits in found.items():
                for k, share in zip(ranks, hits.mean(0).tolist(), strict=True):
                    values[f"{direction}_r{k}_{name}"] = share
            values[f"mean_recall_{name}"] = torch.stack(list(found.values())).mean().item()
        return values


def recalled(view: View, data: SemanticData, ranks: Sequence[int]) -> dict[str, Tensor]:
    """Return, for both directions, which held-out pictures or captions are found, (P', len(ranks)) float64 of 0 and 1.

    Args:
        view: of the pictures of `data`, which all have captions.
        data: the pictures.
        ranks: numbers k of recall at k.
    """
    captions, texts = list(data.heldout.captions), data.train.texts.double()
    pictures, sentences = to_text_space(view, texts), data.heldout.texts.double() - texts.mean(0)
    limits = torch.tensor(ranks)
    found = {}
    for direction, queries, bank in (("text_to_image", sentences, pictures), ("image_to_text", pictures, sentences)):
        places = topk_caption_accuracy(queries, captions, bank, captions, k=1).ranks
        found[direction] = (places.cpu()[:, None] <= limits).double()
    return found


def chance_of_recall(captions: Sequence[str], k: int) -> float:
    """Return the recall at k of a random order, where some captions may stand at several pictures."""
    count = len(captions)
    same = Counter(captions)
    misses = {times: math.comb(count - times, min(k, count)) for times in set(same.values())}
    total = math.comb(count, min(k, count))
    return sum(times * (1 - misses[times] / total) for times in same.values()) / count
