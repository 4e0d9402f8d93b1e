"""What every source of documents has in common.

A source reads *encoded* rows, each with a `key` and whatever else it needs, and turns a row into a `Document` when it
is fetched. Pictures stay encoded until they are tokenized. A picture that is missing or damaged never stops a run:
`missing_pictures` says whether it alone is left out or its whole document; both are counted.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import datasets
from annotated_types import Interval

from visual_tokenizer.data.decoding import DEFAULT_MAX_PIXELS, LARGEST_MAX_PIXELS, SkipReport
from visual_tokenizer.data.sources.base import SPLITS, DataSourceError, hash_fraction
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import PartConfig

ROLES = ("system", "user", "assistant", "tool")
"""Who may speak in a chat. Names become part of the template's text, so there are no others."""


class BrokenDocumentError(UserError):
    """A row is not a document; it is left out and counted, with this reason."""


class Picture(NamedTuple):
    """A picture, still encoded."""

    data: Any
    """What `decode_image` takes: bytes, a path, or `{"bytes", "path"}`; None where it is missing."""


Part = str | Picture


class Turn(NamedTuple):
    """Parts that follow each other, of one speaker in a chat."""

    role: str
    """One of `ROLES`; empty in a document that is not a chat."""
    parts: tuple[Part, ...]
    """Texts and pictures in reading order."""


@dataclass(frozen=True)
class Document:
    """Text and pictures in any order."""

    key: str
    """Identifies it; the held-out documents are chosen by it."""
    turns: tuple[Turn, ...]
    """One without a role; or, of a chat, one or more with roles."""

    @classmethod
    def of_parts(cls, key: str, parts: Sequence[Part]) -> Document:
        """Return a document that is not a chat."""
        return cls(key, (Turn("", tuple(parts)),))

    @property
    def is_chat(self) -> bool:
        """Whether the turns have roles."""
        return any(turn.role for turn in self.turns)

    @property
    def parts(self) -> list[Part]:
        """All parts in reading order."""
        return [part for turn in self.turns for part in turn.parts]

    @property
    def pictures(self) -> list[Picture]:
        """All pictures in reading order."""
        return [part for part in self.parts if isinstance(part, Picture)]


@dataclass(kw_only=True)
class DocumentSourceConfig(PartConfig, package="mmlm.documents"):
    """Fields that every source of documents has."""

    heldout_fraction: Annotated[float, Interval(ge=0, lt=1)] = 0.05
    """Share of the documents kept out of training, chosen by a hash of their key."""
    max_pixels: Annotated[int, Interval(ge=1, le=LARGEST_MAX_PIXELS)] = DEFAULT_MAX_PIXELS
    """Largest width × height that is decoded. Larger pictures count as missing."""
    max_unreadable_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Abort when more than this share of the pictures is missing or unreadable (judged from the 20th on)."""
    missing_pictures: Literal["drop_picture", "drop_document"] = "drop_picture"
    """What a missing or unreadable picture takes with it: drop_picture: nothing; drop_document: its document."""

    @property
    def attribution(self) -> str:
        """What the licence of the documents asks to be named on a model card."""
        return ""


class Placed(NamedTuple):
    """A piece of a document in a training sequence."""

    place: int
    """Its place among the pieces of the document."""
    is_trained: bool
    """Whether it counts in the loss."""


class DocumentSource:
    """A set of documents."""

    Config: ClassVar[type[DocumentSourceConfig]]

    varies: ClassVar[bool] = False
    """Whether `arrange` depends on the epoch."""

    def __init__(self, config: DocumentSourceConfig) -> None:
        self.config: Any = config
        self.report = SkipReport(config.max_unreadable_fraction)

    def read(self) -> datasets.Dataset | datasets.IterableDataset:
        """Return all encoded rows, with the column `key`."""
        raise NotImplementedError

    def document(self, row: Mapping[str, Any]) -> Document:
        """Return the document of an encoded row; BrokenDocumentError where it is none."""
        raise NotImplementedError

    def arrange(
        self, are_pictures: Sequence[bool], chance: Sequence[float], *, is_heldout: bool = False
    ) -> list[Placed]:
        """Return which pieces of a document make its sequence, in their order; here all of them as they stand.

        Args:
            are_pictures: of each piece, whether it is a picture.
            chance: numbers in [0, 1) that depend on seed, epoch and document.
            is_heldout: whether it is measured and not learned from, so that nothing may be left out of it at random.
        """
        return [Placed(place, True) for place in range(len(are_pictures))]

    def may_leave_out(self, *, is_heldout: bool = False) -> bool:
        """Return whether `arrange` may leave pieces out, so that a document's length depends on the epoch."""
        return self.varies

    def load_encoded(self, split: str) -> datasets.Dataset | datasets.IterableDataset:
        """Return the encoded rows of "train", "heldout" or "all".

        Raises:
            DataSourceError: an unknown split, or nothing there.
        """
        if split not in SPLITS:
            raise DataSourceError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        rows = self.read()
        if not isinstance(rows, datasets.IterableDataset) and len(rows) == 0:
            raise DataSourceError(f"the source '{self.config.type}' has no documents: {self.config}")
        if split == "all":
            return rows
        if isinstance(rows, datasets.IterableDataset):
            return rows.filter(functools.partial(self._in_split, split=split), input_columns="key")
        return rows.select([row for row, key in enumerate(rows["key"]) if self._in_split(key, split)])

    def _in_split(self, key: str, split: str) -> bool:
        return (hash_fraction(key) < self.config.heldout_fraction) == (split == "heldout")


PART = DocumentSource
