"""Which of N captions belongs to a picture, by the language model's own likelihood.

Protocol: each picture's caption stands among N - 1 others, drawn with a seed from the distinct captions of the pairs
that are measured. The score is log p(caption, EOS | picture), the sum over the caption's tokens; the rank of the right
caption is 1 + how many others score as much or more. `prior_free` subtracts log p(caption, EOS) without a picture
(pointwise mutual information), since a language model likes some captions better whatever the picture shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from mmlm.generation.loop import evaluation_mode
from mmlm.measures.base import Findings, Measure, MeasureConfig, Pairs, Subject
from mmlm.scores.likelihood import continuation_log_likelihoods


@dataclass(kw_only=True)
class CaptionRetrievalConfig(MeasureConfig):
    """Configures the retrieval of captions."""

    candidates: Annotated[int, Ge(2)] = 64
    """Captions among which the right one stands, itself included; fewer where there are not so many."""
    by_picture: bool = False
    """Whether captions are ranked by log p(picture | caption) too, which takes a picture's tokens a candidate."""
    seed: Annotated[int, Ge(0)] = 0
    """Of the choice of the other captions."""


class CaptionRetrieval(Measure):
    """Recall at 1 and 5 and mean reciprocal rank, in [0, 1], of a picture's caption among N captions."""

    Config = CaptionRetrievalConfig

    def measure(self, subject: Subject) -> Findings:
        values = {}
        rows = []
        for split in subject.splits:
            pairs = subject.pairs(split)
            names = list(dict.fromkeys(pairs.captions))
            if len(names) < 2:
                continue
            chosen = candidates(names, pairs.captions, self.config.candidates, self.config.seed)
            found = {name: retrieval(ranks) for name, ranks in self._ranks(subject, pairs, names, chosen).items()}
            count = chosen.shape[1]
            chance = {
                "recall_at_1": 1 / count,
                "recall_at_5": min(1.0, 5 / count),
                "mean_reciprocal_rank": sum(1 / rank for rank in range(1, count + 1)) / count,
            }
            values[split] = {"candidates": count, "pictures": len(pairs), **found, "chance": chance}
            for name, one in [*found.items(), ("chance", chance)]:
                told = (one["recall_at_1"], one["recall_at_5"], one["mean_reciprocal_rank"])
                label = f"{name.replace('_', ' ')}, {split}, N = {count}"
                rows.append((label, "R@1 {:6.1%}   R@5 {:6.1%}   MRR {:.3f}".format(*told)))
        return Findings(values, rows)

    def _ranks(self, subject: Subject, pairs: Pairs, names: list[str], chosen: Tensor) -> dict[str, Tensor]:
        model, processor, layout = subject.model, subject.processor, subject.processor.layout
        captions = [layout.join(layout.text_ids(name), [layout.eos_id]) for name in names]
        with evaluation_mode(model):
            told = []
            for indices, row in zip(pairs.indices, chosen.tolist(), strict=True):
                beginning, own = processor.prompt_for_caption(indices), [captions[place] for place in row]
                told.append(continuation_log_likelihoods(model, beginning, own, layout.eos_id, subject.batch_size))
            found = {"caption_given_picture": torch.stack(told)}
            if layout.bos_ids:
                alone = continuation_log_likelihoods(
                    model, torch.tensor(layout.bos_ids), captions, layout.eos_id, subject.batch_size
                )
                found["prior_free"] = found["caption_given_picture"] - alone[chosen]
            if self.config.by_picture:
                found["picture_given_caption"] = self._by_picture(subject, pairs, names)[
                    torch.arange(len(pairs))[:, None], chosen
                ]
        return {name: ranks_of_first(one) for name, one in found.items()}

    def _by_picture(self, subject: Subject, pairs: Pairs, names: Sequence[str]) -> Tensor:
        """Return log p(picture | caption) of all pictures and captions, (P, C) float64."""
        layout = subject.processor.layout
        grid = subject.processor.grid
        bodies = [subject.processor.image_block(indices)[len(layout.header(grid)) :] for indices in pairs.indices]
        columns = [
            continuation_log_likelihoods(
                subject.model, layout.prompt_for_image(name, grid), bodies, layout.eos_id, subject.batch_size
            )
            for name in names
        ]
        return torch.stack(columns, 1)


def candidates(names: Sequence[str], captions: Sequence[str], count: int, seed: int) -> Tensor:
    """Return for each caption the places in `names` of itself and then of others, (P, N) int64.

    Args:
        names: C distinct captions.
        captions: of P pictures, each among `names`.
        count: N, or C where that is less.
        seed: of the choice.
    """
    generator = torch.Generator().manual_seed(seed)
    places = {name: place for place, name in enumerate(names)}
    rows = []
    for caption in captions:
        order = torch.randperm(len(names), generator=generator)
        others = order[order != places[caption]][: count - 1]
        rows.append(torch.cat([torch.tensor([places[caption]]), others]))
    return torch.stack(rows)


def ranks_of_first(scores: Tensor) -> Tensor:
    """Return the rank (P,) int64, from 1, of the first of each row's scores (P, N); ties stand before it."""
    return 1 + (scores[:, 1:] >= scores[:, :1]).sum(1)


def retrieval(ranks: Tensor) -> dict[str, float]:
    """Return recall at 1 and 5 and the mean reciprocal rank of ranks (P,) from 1."""
    return {
        "recall_at_1": float((ranks <= 1).double().mean()),
        "recall_at_5": float((ranks <= 5).double().mean()),
        "mean_reciprocal_rank": float(ranks.double().reciprocal().mean()),
    }
