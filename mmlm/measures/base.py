"""What every measure of a merged model has in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from PIL import Image

from mmlm.subject import Subject
from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class MeasureConfig(PartConfig, package="mmlm.measures"):
    """No field is common to all measures."""


@dataclass
class Findings:
    """What a measure found."""

    values: dict[str, Any]
    """In plain JSON types, with the numbers of pictures, tokens or candidates that they stand on."""
    rows: list[tuple[str, str]]
    """What the terminal shows: a name and a value with its unit, each."""
    sheets: dict[str, Image.Image] = field(default_factory=dict)
    """Name of a PNG file without its ending → sheet of pictures."""


class Measure:
    """One way to look at a merged model."""

    Config: ClassVar[type[MeasureConfig]]

    def __init__(self, config: MeasureConfig) -> None:
        self.config: Any = config

    def measure(self, subject: Subject) -> Findings:
        """Measure; the subject's model keeps its weights and its mode."""
        raise NotImplementedError

    def protocol(self) -> dict[str, Any]:
        """Return what two values must have in common to be compared: type, fields and what is measured."""
        meaning = (type(self).__doc__ or "").strip().splitlines()[0]
        return {**self.config.to_dict(), "measures": meaning}


PART = Measure
