"""Pictures as tokens, beside what is known of them: a class, a caption, a teacher's features.

Shapes: P pictures, N tokens a picture at most, Q codebooks, C channels of a code, D of the teacher, E of a text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.outputs import ABSENT
from visual_tokenizer.semantics._token_bags import TokenBags


@dataclass(frozen=True)
class TokenizedPictures:
    """Pictures in the order of their set."""

    codes: Tensor
    """(P, C) float32, the mean of a picture's codes."""
    indices: Tensor
    """(P, N, Q) int32 in [0, codebook_size); `ABSENT` behind the tokens of a picture that has fewer."""
    features: Tensor
    """(P, D) float32, what a frozen network makes of the picture."""
    texts: Tensor
    """(P, E) float32, what a frozen text encoder makes of the caption; E is 0 where there is none."""
    labels: Sequence[str]
    """P classes; empty where a picture has none."""
    captions: Sequence[str]
    """P captions; empty where a picture has none."""

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: Sequence[int]) -> TokenizedPictures:
        """Return the pictures of these numbers, in their order."""
        numbers = torch.tensor(list(rows), dtype=torch.int64)
        chosen: dict[str, Any] = {
            field.name: value[numbers] if isinstance(value, Tensor) else [value[row] for row in rows]
            for field in fields(self)
            for value in [getattr(self, field.name)]
        }
        return TokenizedPictures(**chosen)


def join_pictures(parts: Sequence[TokenizedPictures]) -> TokenizedPictures:
    """Put pictures one behind the other; token grids of different lengths are filled up with `ABSENT`."""
    longest = max(part.indices.shape[1] for part in parts)
    widest = max(part.texts.shape[1] for part in parts)
    padded = [F.pad(part.indices, (0, 0, 0, longest - part.indices.shape[1]), value=ABSENT) for part in parts]
    return TokenizedPictures(
        codes=torch.cat([part.codes for part in parts]),
        indices=torch.cat(padded),
        features=torch.cat([part.features for part in parts]),
        texts=torch.cat([F.pad(part.texts, (0, widest - part.texts.shape[1])) for part in parts]),
        labels=[label for part in parts for label in part.labels],
        captions=[caption for part in parts for caption in part.captions],
    )


@dataclass(frozen=True)
class View:
    """One way to describe a picture by a vector."""

    train: Tensor
    """(P, D) float64 of the training pictures; dense, or sparse (COO) for bags of tokens."""
    heldout: Tensor
    """(P', D) float64 of the held-out pictures, likewise."""

    def standardised(self) -> View:
        """Return each channel with mean 0 and variance 1 over the training pictures; bags stay as they are."""
        if self.train.is_sparse:
            return self
        mean, deviation = self.train.mean(0), self.train.std(0, unbiased=False)
        deviation = torch.where(deviation > 1e-8 * (1 + mean.abs()), deviation, torch.ones_like(deviation))
        return View((self.train - mean) / deviation, (self.heldout - mean) / deviation)


@dataclass(frozen=True)
class SemanticData:
    """What measures are made from."""

    train: TokenizedPictures
    heldout: TokenizedPictures
    codebook_size: int
    text_encoder: Callable[[Sequence[str]], Tensor] | None
    """Strings to (B, E) float32, as the captions; None where no measure asks for it."""

    def having(self, needs: Sequence[str]) -> SemanticData:
        """Return the pictures whose `labels`, `captions` or both are not empty."""
        train, heldout = (
            part.select(
                [row for row, texts in enumerate(zip(*(getattr(part, n) for n in needs), strict=True)) if all(texts)]
            )
            for part in (self.train, self.heldout)
        )
        return replace(self, train=train, heldout=heldout)

    @functools.cached_property
    def classes(self) -> list[str]:
        """The classes of the training pictures, sorted."""
        return sorted(set(self.train.labels) - {""})

    def class_numbers(self, pictures: TokenizedPictures) -> Tensor:
        """Return the place of each picture's class among `classes`, (P,) int64; -1 for one that is not there."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        return torch.tensor([numbers.get(label, -1) for label in pictures.labels], dtype=torch.int64)

    @functools.cached_property
    def views(self) -> dict[str, View]:
        """By name: `codes` their mean, `tokens` the bag of tokens (TF-IDF), `teacher` the ceiling."""
        bags = TokenBags(self.train.indices, self.codebook_size)
        return {
            "codes": View(self.train.codes.double(), self.heldout.codes.double()),
            "tokens": View(bags(self.train.indices), bags(self.heldout.indices)),
            "teacher": View(self.train.features.double(), self.heldout.features.double()),
        }

    @functools.cached_property
    def majority_share(self) -> float:
        """Share of the held-out pictures that are of the commonest class of the training pictures."""
        commonest = torch.bincount(self.class_numbers(self.train), minlength=len(self.classes)).argmax()
        return (self.class_numbers(self.heldout) == commonest).double().mean().item()
