"""What every measure of the meaning of tokens has in common: pictures as tokens, beside what is known of them.

Shapes: P pictures, N tokens a picture at most, Q codebooks, C channels of a code, D of the teacher, E of a text.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.errors import UserError
from visual_tokenizer.outputs import ABSENT
from visual_tokenizer.registry import PartConfig


def require_scikit_learn() -> None:
    """Raise UserError unless scikit-learn is installed, which measures fit and count with."""
    if importlib.util.find_spec("sklearn") is None:
        raise UserError(
            "semantic measures and feature probes need the package scikit-learn: pip install 'mmlm[semantics]'"
        )


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

    train: Any
    """(P, D) float64 of the training pictures: an array, or a sparse matrix for bags of tokens."""
    heldout: Any
    """(P', D) float64 of the held-out pictures, likewise."""

    def standardised(self) -> View:
        """Return each channel with mean 0 and variance 1 over the training pictures; bags stay as they are."""
        from sklearn.preprocessing import StandardScaler

        if not isinstance(self.train, np.ndarray):
            return self
        scaler = StandardScaler().fit(self.train)
        return View(scaler.transform(self.train), scaler.transform(self.heldout))


def token_bags(train: Tensor, heldout: Tensor, codebook_size: int) -> View:
    """Return TF-IDF of tokens, of unit length: counts times 1 + ln((1 + P) / (1 + pictures that hold the code)).

    Only codes that some training picture holds are columns, so that the size of the codebook costs nothing; other codes
    are left out.

    Args:
        train: (P, N, Q) integers in [0, codebook_size), or `ABSENT`.
        heldout: (P', N', Q), likewise.
        codebook_size: K; codebook q has the numbers q K … (q + 1) K − 1.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    def words(indices: Tensor) -> list[list[int]]:
        numbers = indices.long() + codebook_size * torch.arange(indices.shape[2])
        return [row[is_there].tolist() for row, is_there in zip(numbers, indices != ABSENT, strict=True)]

    bags = TfidfVectorizer(analyzer=list)
    return View(bags.fit_transform(words(train)), bags.transform(words(heldout)))


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
        train, heldout = self.train, self.heldout
        return {
            "codes": View(train.codes.double().numpy(), heldout.codes.double().numpy()),
            "tokens": token_bags(train.indices, heldout.indices, self.codebook_size),
            "teacher": View(train.features.double().numpy(), heldout.features.double().numpy()),
        }

    @functools.cached_property
    def majority_share(self) -> float:
        """Share of the held-out pictures that are of the commonest class of the training pictures."""
        commonest = torch.bincount(self.class_numbers(self.train), minlength=len(self.classes)).argmax()
        return (self.class_numbers(self.heldout) == commonest).double().mean().item()


def code_class_counts(indices: Tensor, classes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the codes of one codebook that are used, (M,) int64, and their tokens by class, (M, count) int64.

    Args:
        indices: (P, N) integers, `ABSENT` where there is no token.
        classes: (P,) int64 in [0, count); tokens of pictures of class -1 are left out.
        count: number of classes.
    """
    present = (indices != ABSENT) & (classes >= 0)[:, None]
    pictures = present.nonzero(as_tuple=True)[0]
    used, places = indices[present].long().unique(return_inverse=True)
    counts = torch.bincount(places * count + classes[pictures], minlength=len(used) * count)
    return used, counts.view(len(used), count)


@dataclass(kw_only=True)
class SemanticMeasureConfig(PartConfig, package="visual_tokenizer.semantics"):
    """No field is common to all measures."""


class SemanticMeasure:
    """A number about tokens and what is known of their pictures: a class or a caption.

    It sees the pictures of all processes in the order of the set, so that neither processes nor batches matter, and is
    computed in float64. What is fitted is fitted on the training pictures and measured on the held-out ones.

    Args:
        seed: of every draw.

    Raises:
        UserError: scikit-learn is not installed.
    """

    Config: ClassVar[type[SemanticMeasureConfig]]
    needs: ClassVar[tuple[str, ...]]
    """What pictures must have: `labels`, `captions`."""

    def __init__(self, config: SemanticMeasureConfig, seed: int = 0) -> None:
        require_scikit_learn()
        self.config: Any = config
        self.seed = seed

    def measure(self, data: SemanticData) -> dict[str, float]:
        """Return values by name, `MEASURE_VIEW`, and what chance would give as `MEASURE_chance`.

        Args:
            data: pictures that all have what the measure `needs`.
        """
        raise NotImplementedError

    def protocol(self) -> dict[str, Any]:
        """Return what two values must have in common to be compared: type, fields, what is measured."""
        meaning = (type(self).__doc__ or "").strip().splitlines()[0]
        return {**self.config.to_dict(), "measures": meaning}


PART = SemanticMeasure
