"""How often each code occurs, in what pictures, and which codes are worth a look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from visual_tokenizer.outputs import ABSENT
from visual_tokenizer.semantics.base import SemanticData, code_class_counts, join_pictures

LEAST_PICTURES = 5
"""Pictures that a code must stand in to be called pure."""


@dataclass(frozen=True)
class CodeStatistics:
    """One code over all pictures."""

    book: int
    """Its codebook."""
    index: int
    """Its index in [0, codebook_size)."""
    tokens: int
    """How often it occurs."""
    pictures: int
    """In how many pictures."""
    purity: float
    """Share of its commonest class among its tokens in pictures that have a class; 0 where none has."""
    commonest: str
    """That class; empty where no picture has one."""


def code_statistics(data: SemanticData) -> list[CodeStatistics]:
    """Return every code that occurs, codebook by codebook."""
    pictures = join_pictures([data.train, data.heldout])
    classes, names = data.class_numbers(pictures), data.classes
    everyone = torch.zeros_like(classes)
    found = []
    for book, indices in enumerate(pictures.indices.unbind(2)):
        used, tokens = code_class_counts(indices, everyone, 1)
        by_class = {}
        if names:
            labelled, table = code_class_counts(indices, classes, len(names))
            by_class = dict(zip(labelled.tolist(), table, strict=True))
        owners = torch.arange(len(indices))[:, None].expand_as(indices)[indices != ABSENT]
        pairs = (indices[indices != ABSENT].long() * len(indices) + owners).unique()
        holders = (pairs // len(indices)).unique(return_counts=True)
        holding = dict(zip(*(part.tolist() for part in holders), strict=True))
        for index, count in zip(used.tolist(), tokens[:, 0].tolist(), strict=True):
            row = by_class.get(index)
            purity, commonest = 0.0, ""
            if row is not None:
                purity, commonest = (row.max() / row.sum()).item(), names[int(row.argmax())]
            found.append(CodeStatistics(book, index, count, holding[index], purity, commonest))
    return found


def choose_codes(statistics: Sequence[CodeStatistics], count: int, seed: int) -> dict[str, list[CodeStatistics]]:
    """Return `count` codes each that are most used, purest and drawn at random, by heading; each code at most once."""
    chosen: list[CodeStatistics] = []

    def take(candidates: Iterable[CodeStatistics]) -> list[CodeStatistics]:
        taken = [code for code in candidates if code not in chosen][:count]
        chosen.extend(taken)
        return taken

    most = sorted(statistics, key=lambda code: (-code.tokens, code.book, code.index))
    pure = [code for code in most if code.pictures >= LEAST_PICTURES and code.commonest]
    order = torch.randperm(len(statistics), generator=torch.Generator().manual_seed(seed)).tolist()
    return {
        "Most used": take(most),
        f"Purest, of those in {LEAST_PICTURES} pictures or more": take(sorted(pure, key=lambda code: -code.purity)),
        "Drawn at random": take(statistics[number] for number in order),
    }
