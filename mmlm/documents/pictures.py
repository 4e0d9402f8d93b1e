"""Pictures with captions as documents: caption and picture, picture and caption, or the picture alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import datasets
from annotated_types import Interval

from mmlm.documents.base import Document, DocumentSource, DocumentSourceConfig, Part, Picture, Placed
from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig
from visual_tokenizer.errors import UserError

FIELDS_OF_THE_SOURCE = ("heldout_fraction", "max_pixels", "max_unreadable_fraction")


@dataclass(kw_only=True)
class PicturesConfig(DocumentSourceConfig):
    """Any source of pictures that a visual tokenizer trains on; what it holds out is held out here."""

    source: SourceConfig
    """Pictures with captions; its heldout_fraction, max_pixels and max_unreadable_fraction count."""
    image_to_text_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.2
    """Share of the sequences that are picture → caption; the others are caption → picture."""
    caption_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Share of the caption → picture sequences without caption, which classifier-free guidance needs; 1 with
    image_to_text_fraction 0: pictures alone. Held-out ones keep theirs."""
    loss_on_prompt: bool = True
    """Whether what comes first is trained too."""
    missing_pictures: Literal["drop_document"] = "drop_document"
    """A pair without its picture is left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in FIELDS_OF_THE_SOURCE:
            own = getattr(self.source, name)
            if getattr(self, name) not in (defaults[name], own):
                raise UserError(f"{name} must be given as source.{name}, got {getattr(self, name)}")
            setattr(self, name, own)

    @property
    def attribution(self) -> str:
        return str(SourceConfig.family.get(self.source.type).attribution)


class Pictures(DocumentSource):
    """Documents of a caption and a picture; which comes first is drawn anew in every epoch."""

    Config = PicturesConfig
    varies = True

    def __init__(self, config: PicturesConfig) -> None:
        super().__init__(config)
        if SourceConfig.family.get(config.source.type).content != "image":
            raise DataSourceError(f"pictures: source must be one of pictures, got '{config.source.type}'")

    @functools.cached_property
    def source(self) -> Source:
        """The source; it is not needed where shards are read."""
        source: Source = SourceConfig.family.build(self.config.source)
        return source

    def load_encoded(self, split: str) -> datasets.Dataset | datasets.IterableDataset:
        return self.source.load_encoded(split)

    def document(self, row: Mapping[str, Any]) -> Document:
        caption = row.get("caption")
        if isinstance(caption, list):
            caption = caption[0] if caption else None
        parts: list[Part] = [] if caption is None else [str(caption)]
        return Document.of_parts(str(row["key"]), [*parts, Picture(row["image"])])

    def may_leave_out(self, *, is_heldout: bool = False) -> bool:
        return not is_heldout and self.config.caption_dropout > 0

    def arrange(
        self, are_pictures: Sequence[bool], chance: Sequence[float], *, is_heldout: bool = False
    ) -> list[Placed]:
        pictures_first, texts_first, pictures_alone = _forms(tuple(are_pictures), self.config.loss_on_prompt)
        if chance[0] < self.config.image_to_text_fraction:
            return pictures_first
        is_dropped = not is_heldout and chance[1] < self.config.caption_dropout
        return pictures_alone if is_dropped else texts_first


@functools.lru_cache(maxsize=64)
def _forms(are_pictures: tuple[bool, ...], loss_on_prompt: bool) -> tuple[list[Placed], list[Placed], list[Placed]]:
    """Return a document with the pictures first, with the texts first, and without texts; where the limits left no
    picture, its texts."""
    texts = [Placed(place, True) for place, is_picture in enumerate(are_pictures) if not is_picture]
    pictures = [Placed(place, True) for place, is_picture in enumerate(are_pictures) if is_picture]
    if not pictures:
        return texts, texts, texts
    prompts = [[one._replace(is_trained=loss_on_prompt) for one in first] for first in (pictures, texts)]
    return prompts[0] + texts, prompts[1] + pictures, pictures
