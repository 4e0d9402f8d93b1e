"""What every source of published weights has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from PIL import Image
from torch import Tensor

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.convert.links import Link, Weights, read_links, write_links
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class PublishedSourceConfig(PartConfig, package="visual_tokenizer.convert.sources"):
    """Fields that every source has."""

    image_size: Annotated[int, Ge(1)] | None = None
    """Nominal side of a picture in pixels; null: what the config.json beside the weights says, or the published."""


class PublishedSource:
    """One published layout of weights, read and written.

    A subclass sets `anchor`, `published_size` and what pictures were given to the published model, and implements
    `describe` and `links`.
    """

    Config: ClassVar[type[PublishedSourceConfig]]
    anchor: ClassVar[str]
    """A weight that the layout always has. What stands before it in a larger model's names is taken off."""

    beside: ClassVar[tuple[str, ...]] = ()
    """Beginnings of names of weights that are not the tokenizer's, such as a discriminator's."""

    published_size: ClassVar[int] = 256
    """Side in pixels of the pictures of the published model."""

    resample: ClassVar[Image.Resampling] = Image.Resampling.BICUBIC
    """Filter with which its pictures were resized, the shorter side to the size, before the centre was cut out."""

    about: ClassVar[str]
    """Name, authors and address of the original, for the model card."""

    def __init__(self, config: PublishedSourceConfig) -> None:
        self.config: Any = config

    def own(self, tensors: Weights) -> dict[str, Tensor]:
        """Return the tokenizer's weights under their own names.

        Raises:
            UserError: there are none.
        """
        heads = sorted({name.removesuffix(self.anchor) for name in tensors if _ends_in(name, self.anchor)}, key=len)
        if not heads:
            raise UserError(
                f"the checkpoint does not have the layout of '{self.config.type}': it has no weight called "
                f"{self.anchor}; it has {', '.join(list(tensors)[:3])}…"
            )
        head = heads[0]
        return {
            name.removeprefix(head): tensors[name]
            for name in tensors
            if name.startswith(head) and not name.removeprefix(head).startswith(self.beside)
        }

    def join(self, own: dict[str, Tensor], decoder: Weights) -> dict[str, Tensor]:
        """Add the weights of a decoder that is published by itself."""
        raise UserError(f"the weights of '{self.config.type}' hold the decoder: give no other")

    def image_size(self, settings: Mapping[str, Any]) -> int:
        """Return the nominal size: that of the config, of config.json, or the published one."""
        return int(self.config.image_size or self.size_in(settings) or self.published_size)

    def size_in(self, settings: Mapping[str, Any]) -> int | None:
        """Return the size that the config.json of the published model states, if it does."""
        return None

    def describe(self, published: Weights, image_size: int, settings: Mapping[str, Any]) -> VisualTokenizerConfig:
        """Return the architecture that has these weights."""
        raise NotImplementedError

    def links(self, config: VisualTokenizerConfig) -> list[Link]:
        """Return which weight is which, for an architecture that `describe` gives.

        Raises:
            UserError: the layout can't hold this architecture.
        """
        raise NotImplementedError

    def links_of(self, config: VisualTokenizerConfig, published: Weights) -> list[Link]:
        """Return the links for reading, where a source has several layouts: those of what was found."""
        return self.links(config)

    def read(self, published: Weights, config: VisualTokenizerConfig) -> dict[str, Tensor]:
        """Return our weights by name."""
        return read_links(self.links_of(config, published), published, f"source '{self.config.type}'")

    def write(self, state: Weights, config: VisualTokenizerConfig) -> dict[str, Tensor]:
        """Return the published layout's weights by name."""
        return write_links(self.links(config), state)


def _ends_in(name: str, anchor: str) -> bool:
    return name == anchor or name.endswith(f".{anchor}")


def require_parts(config: VisualTokenizerConfig, source: str, **types: tuple[str, ...]) -> None:
    """Refuse to write an architecture that a layout has no place for.

    Raises:
        UserError: a section is of another type than the layout holds.
    """
    for section, allowed in types.items():
        found = getattr(config, section)["type"]
        if found not in allowed:
            raise UserError(f"the layout of '{source}' holds {section} {' or '.join(allowed)}, got '{found}'")


PART = PublishedSource
