"""How tokens are drawn: what a recipe, a command, a request or a call may say of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Interval

from visual_tokenizer.fields.ranges import Section

Scale = Annotated[float, Ge(0)]
Temperature = Annotated[float, Ge(0)]
TopK = Annotated[int, Ge(0)]
TopP = Annotated[float, Interval(gt=0, le=1)]


@dataclass(kw_only=True)
class Sampling(Section):
    """What is saved with a model as its default for pictures; of text, guidance is not used."""

    guidance_scale: Scale = 3.0
    """Classifier-free guidance; 1: none."""
    temperature: Temperature = 1.0
    """Scores are divided by it; 0: the likeliest token."""
    top_k: TopK = 0
    """Only the k likeliest tokens are drawn from; 0: all."""
    top_p: TopP = 1.0
    """Only the likeliest tokens that together have this probability are drawn from."""


@dataclass(kw_only=True)
class PictureSampling(Sampling):
    """What a call may say of pictures beside it."""

    image_guidance_scale: Scale | None = None
    """Turns on Chameleon's guidance with three contexts, in which `guidance_scale` is the text's."""
    negative_prompt: str | None = None
    """What guidance leads away from; None: no prompt."""

    @classmethod
    def over(cls, saved: Mapping[str, Any], **given: Any) -> PictureSampling:
        """Return the settings that are given and not None, and the saved ones (a processor's `sampling`) for others."""
        return cls(**{**saved, **{name: value for name, value in given.items() if value is not None}})
