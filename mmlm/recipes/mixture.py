"""What of a recipe names documents: the members of a mixture, their weights and the limits of their documents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from mmlm.documents.base import DocumentSourceConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Section


@dataclass(kw_only=True)
class DocumentLimits(Section):
    """What becomes of documents that are too short or too long. A picture is never cut: it is there or it is not."""

    min_characters: Annotated[int, Ge(0)] = 0
    """Documents with less text are left out."""
    max_characters: Annotated[int, Ge(1)] | None = None
    """Documents with more text are left out; null: no limit."""
    min_pictures: Annotated[int, Ge(0)] = 0
    """Documents with fewer readable pictures are left out."""
    max_pictures: Annotated[int, Ge(0)] | None = None
    """Documents end before a picture more; null: no limit."""
    max_text_tokens: Annotated[int, Ge(1)] | None = None
    """Longer texts between two pictures are cut, but in chats; null: no limit."""
    max_tokens: Annotated[int, Ge(1)] | None = None
    """Longer documents are cut: within a text, or before the picture that does not fit; chats after an answer. null:
    data.max_length."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for what in ("characters", "pictures"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if most is not None and most < least:
                raise UserError(f"max_{what} must be at least min_{what} = {least}, got {most}")


@dataclass(kw_only=True)
class MixtureMember(Section):
    """One set of documents of a mixture."""

    documents: DocumentSourceConfig
    """Where they come from."""
    weight: Annotated[float, Gt(0)] = 1.0
    """Share of the sequences, beside the weights of the others."""
    name: str | None = None
    """Subfolder of data.shards_dir; null: the type of documents, numbered where several members have it."""
    tokenization: Literal["shards", "on_the_fly"] = "shards"
    """shards: pictures become tokens once, before training; on_the_fly: again whenever they are trained on, which costs
    a pass of the visual tokenizer a time, but no time before and no space for their tokens."""
    limits: DocumentLimits = field(default_factory=DocumentLimits)
    """What becomes of documents that are too short or too long."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name is not None and (PurePath(self.name).name != self.name or self.name.startswith(".")):
            raise UserError(f"name must be the name of a folder, without a path or a dot before it, got {self.name!r}")


def member_names(mixture: Sequence[MixtureMember]) -> list[str]:
    """Return the subfolder of each member; ValueError where two members have one."""
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
