"""What a recipe of `visual_tokenizer.evaluate` says about the meaning of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import yaml
from annotated_types import Ge

from visual_tokenizer.backbones.base import NetworkFields
from visual_tokenizer.semantics.base import SemanticMeasureConfig, require_scikit_learn
from visual_tokenizer.text_encoders.base import TextEncoderConfig

LEAST = 10
"""Pictures of a split from which anything is measured."""


@dataclass(kw_only=True)
class SemanticSection(NetworkFields):
    """How the meaning of tokens is measured and shown."""

    measures: list[Any] | None = None
    """Names of `visual_tokenizer/semantics`, or mappings of `type` and fields; null: all that the pictures allow."""

    label: str | None = None
    """Column of the pictures' classes; null: the source's first (of openmoji `group`, the other is `subgroup`)."""

    network: str = "efficientnet_lite0"
    """Frozen network whose embedding of a picture is the ceiling, the `teacher`."""

    text_encoder: TextEncoderConfig = field(default_factory=lambda: TextEncoderConfig.family.config({"type": "minilm"}))
    """Frozen network of captions and class names."""

    max_pictures: Annotated[int, Ge(LEAST)] | None = 10_000
    """At most so many training and as many held-out pictures, spread evenly over the split; null for all. Where bags of
    tokens are longer than this, a matrix of so many rows and columns is decomposed."""

    seed: Annotated[int, Ge(0)] = 0
    """Seed of every draw."""

    codes_shown: Annotated[int, Ge(0)] = 8
    """Codes in each part of the page: most used, purest, drawn at random."""

    pictures_shown: Annotated[int, Ge(1)] = 8
    """Pictures of each code on the page."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_scikit_learn()
        self.measure_configs()

    def measure_configs(self) -> list[SemanticMeasureConfig]:
        """Return the configs of `measures`; of all that there are, with their defaults, where it is null."""
        family = SemanticMeasureConfig.family
        configs: list[SemanticMeasureConfig] = family.configs(
            family.names() if self.measures is None else self.measures, "measures"
        )
        return configs


def with_semantic(arguments: Sequence[str]) -> list[str]:
    """Replace `--semantic`, with or without `true`, by an empty section, which later arguments fill; drop `false`."""
    words: list[str] = []
    is_wanted = False
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, is_one_word, value = word.partition("=")
        if name != "--semantic":
            words.append(word)
            continue
        if not is_one_word:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        answer = yaml.safe_load(value)
        if not isinstance(answer, bool):
            words.append(f"{name}={value}")
        is_wanted = answer is True
    return ["--semantic={}", *words] if is_wanted else words
