"""What every measure of the meaning of tokens has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from visual_tokenizer.registry import PartConfig
from visual_tokenizer.semantics._pictures import SemanticData


@dataclass(kw_only=True)
class SemanticMeasureConfig(PartConfig, package="visual_tokenizer.semantics"):
    """No field is common to all measures."""


class SemanticMeasure:
    """A number about tokens and what is known of their pictures: a class or a caption.

    It sees the pictures of all processes in the order of the set, so that neither processes nor batches matter, and is
    computed in float64. What is fitted is fitted on the training pictures and measured on the held-out ones.

    Args:
        config: the part's fields.
        seed: of every draw.
    """

    Config: ClassVar[type[SemanticMeasureConfig]]
    needs: ClassVar[tuple[str, ...]]
    """What pictures must have: `labels`, `captions`."""

    def __init__(self, config: SemanticMeasureConfig, seed: int = 0) -> None:
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
