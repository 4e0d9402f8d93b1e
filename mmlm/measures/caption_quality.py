"""Captions that the model writes for pictures, against the pictures' own.

BLEU by sacrebleu, ROUGE-L and CIDEr-D as their papers say; see `mmlm/scores`. A picture has one reference, its
caption. Where captions have fewer than four words, BLEU-4 and the longer runs of CIDEr-D find next to nothing: look at
BLEU-1, ROUGE-L and the exact matches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from mmlm.generation.captions import describe_images
from mmlm.generation.grid import image_grid
from mmlm.measures.base import Findings, Measure, MeasureConfig, Subject
from mmlm.scores.bleu import bleu
from mmlm.scores.cider_d import cider_d
from mmlm.scores.rouge_l import rouge_l
from mmlm.scores.words import words


@dataclass(kw_only=True)
class CaptionQualityConfig(MeasureConfig):
    """Configures the writing of captions; the likeliest token is taken at each place."""

    max_new_tokens: Annotated[int, Ge(1)] = 32
    """Longest caption, in tokens."""


class CaptionQuality(Measure):
    """BLEU-1 and BLEU-4 (0 to 100), ROUGE-L, exact matches (in [0, 1]) and CIDEr-D (0 to 10) of written captions."""

    Config = CaptionQualityConfig

    def measure(self, subject: Subject) -> Findings:
        values, rows, sheets = {}, [], {}
        for split in subject.splits:
            pairs = subject.pairs(split)
            written = describe_images(
                subject.model,
                subject.processor,
                pairs.images,
                max_new_tokens=self.config.max_new_tokens,
                batch_size=subject.batch_size,
                show_progress=subject.show_progress,
            )
            values[split] = scores(written, [[caption] for caption in pairs.captions])
            values[split]["captions"] = [
                {"key": key, "written": text, "reference": caption}
                for key, text, caption in zip(pairs.keys, written, pairs.captions, strict=True)
            ]
            rows.append((f"written captions, {split}", _told(values[split])))
            sheets[f"captions_{split}"] = image_grid(pairs.images, [text or "(nothing)" for text in written])
        return Findings(values, rows, sheets)


def scores(written: list[str], references: list[list[str]]) -> dict[str, Any]:
    """Return all scores of written captions, P of them, with P and BLEU's signature."""
    found: dict[str, Any] = {"pictures": len(written)}
    for longest in (1, 4):
        found[f"bleu_{longest}"], found["bleu_signature"] = bleu(written, references, longest)
    pairs = list(zip(written, references, strict=True))
    found["rouge_l"] = sum(rouge_l(text, own) for text, own in pairs) / len(pairs)
    found["cider_d"] = sum(cider_d(written, references)) / len(pairs)
    exact = [any(words(text) == words(one) for one in own) for text, own in pairs]
    found["exact"] = sum(exact) / len(pairs)
    return found


def _told(found: dict[str, Any]) -> str:
    return (
        f"BLEU-1 {found['bleu_1']:.1f}   BLEU-4 {found['bleu_4']:.1f}   ROUGE-L {found['rouge_l']:.3f}   "
        f"CIDEr-D {found['cider_d']:.3f}   exact {found['exact']:.1%}"
    )
