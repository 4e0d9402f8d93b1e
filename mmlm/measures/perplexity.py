"""Loss and perplexity by modality, of caption → picture and of picture → caption."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mmlm.measures.base import Findings, Measure, MeasureConfig, Pairs, Subject
from mmlm.scores.likelihood import KindLoss, tally_by_kind


@dataclass(kw_only=True)
class PerplexityConfig(MeasureConfig):
    """The pairs are those of the whole evaluation, of the split and of the held-out pictures where there are any."""


class Perplexity(Measure):
    """Mean loss in nats a token, and its exponential, over the whole vocabulary; each token after those before it."""

    Config = PerplexityConfig

    def measure(self, subject: Subject) -> Findings:
        model, layout = subject.model, subject.processor.layout
        values: dict[str, Any] = {}
        rows = []
        for split in subject.splits:
            pairs = subject.pairs(split)
            values[split] = {"pairs": len(pairs)}
            for direction, sequences in _sequences(subject, pairs).items():
                tallies = tally_by_kind(model, layout, sequences, subject.batch_size)
                found = {kind: _described(tally) for kind, tally in tallies.items() if tally.tokens}
                values[split][direction] = found
                told = "   ".join(f"{kind} {one['perplexity']:.4g}" for kind, one in found.items())
                rows.append((f"{direction.replace('_', ' ')}, {split}", told))
        return Findings(values, rows)


def _sequences(subject: Subject, pairs: Pairs) -> dict[str, list[Any]]:
    processor = subject.processor
    both = list(zip(pairs.captions, pairs.indices, strict=True))
    return {
        "caption_to_picture": [processor.caption_to_image(caption, indices) for caption, indices in both],
        "picture_to_caption": [processor.image_to_caption(indices, caption) for caption, indices in both],
    }


def _described(tally: KindLoss) -> dict[str, float]:
    assert tally.loss is not None
    return {"loss": tally.loss, "perplexity": math.exp(min(tally.loss, 700.0)), "tokens": tally.tokens}
