"""What of a recipe names documents: the members of a mixture, their weights and the limits of their documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from mmlm.documents.base import DocumentSourceConfig
from visual_tokenizer.errors import UserError

SHARDS, ON_THE_FLY = "shards", "on_the_fly"
TOKENIZATIONS = (SHARDS, ON_THE_FLY)


@dataclass(kw_only=True)
class DocumentLimits:
    """What becomes of documents that are too short or too long. A picture is never cut: it is there or it is not."""

    min_characters: int = 0
    """Documents with less text are left out; 0 or more."""
    max_characters: int | None = None
    """Documents with more text are left out; 1 or more; null: no limit."""
    min_pictures: int = 0
    """Documents with fewer readable pictures are left out; 0 or more."""
    max_pictures: int | None = None
    """Documents end before a picture more; 0 or more; null: no limit."""
    max_text_tokens: int | None = None
    """Longer texts between two pictures are cut, but in chats; 1 or more; null: no limit."""
    max_tokens: int | None = None
    """Longer documents are cut: within a text, or before the picture that does not fit; chats after an answer. 1 or
    more; null: data.max_length."""

    def __post_init__(self) -> None:
        for name, least in (("min_characters", 0), ("min_pictures", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be {least} or more, got {getattr(self, name)}")
        for name, least in (("max_characters", 1), ("max_pictures", 0), ("max_text_tokens", 1), ("max_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"{name} must be {least} or more, or null, got {value}")
        for what in ("characters", "pictures"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if most is not None and most < least:
                raise UserError(f"max_{what} must be at least min_{what} = {least}, got {most}")


@dataclass(kw_only=True)
class MixtureMember:
    """One set of documents of a mixture."""

    documents: DocumentSourceConfig
    """Where they come from."""
    weight: float = 1.0
    """Share of the sequences, beside the weights of the others; above 0."""
    name: str | None = None
    """Subfolder of data.shards_dir; null: the type of documents, numbered where several members have it."""
    tokenization: str = SHARDS
    """shards: pictures become tokens once, before training; on_the_fly: again whenever they are trained on, which costs
    a pass of the visual tokenizer a time, but no time before and no space for their tokens."""
    limits: DocumentLimits = field(default_factory=DocumentLimits)
    """What becomes of documents that are too short or too long."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise UserError(f"weight must be above 0, got {self.weight}")
        if self.tokenization not in TOKENIZATIONS:
            raise UserError(f"tokenization must be one of {', '.join(TOKENIZATIONS)}, got {self.tokenization!r}")
        if self.name is not None and (PurePath(self.name).name != self.name or self.name.startswith(".")):
            raise UserError(f"name must be the name of a folder, without a path or a dot before it, got {self.name!r}")


def member_names(mixture: Sequence[MixtureMember]) -> list[str]:
    """Return the subfolder of each member.

    Raises:
        ValueError: two members have one.
    """
    types = Counter(member.documents.type for member in mixture if member.name is None)
    numbers: Counter[str] = Counter()
    names = []
    for member in mixture:
        kind = member.documents.type
        numbers[kind] += member.name is None
        unnamed = f"{kind}-{numbers[kind]}" if types[kind] > 1 else kind
        names.append(unnamed if member.name is None else member.name)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"name must differ from member to member, got {twice[0]!r} twice")
    return names
