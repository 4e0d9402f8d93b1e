"""Declared ranges of lists and of several choices, and configs as plain JSON types."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Len

from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.decoding import decode_config
from visual_tokenizer.fields.encoding import encode_config
from visual_tokenizer.fields.ranges import Different, Growing, Section, declared_types, rule_of
from visual_tokenizer.losses.base import LossConfig


@dataclass(kw_only=True)
class Fields(Section):
    """Some kinds of fields."""

    strengths: Annotated[list[Annotated[float, Gt(0)]], Len(1), Growing()] = field(default_factory=lambda: [0.1, 1])
    layers: Annotated[list[Annotated[int, Ge(0)]], Different()] | None = None
    most: Literal[0] | Annotated[int, Ge(2)] = 0
    scale: Annotated[float, Gt(0)] | Annotated[list[Annotated[float, Gt(0)]], Len(1)] = 1.0
    folder: Path = Path("there")
    loss: LossConfig = field(default_factory=lambda: LossConfig.family.config({"type": "l1"}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"strengths": [1, 0.1]}, r"strengths must be growing, got \[1, 0.1\]"),
        ({"strengths": [1, 1]}, r"strengths must be growing, got \[1, 1\]"),
        ({"strengths": []}, r"strengths must hold 1 or more items, got \[\]"),
        ({"strengths": [0, 1]}, r"strengths\[0\] must be above 0, got 0"),
        ({"strengths": 3}, r"strengths must be a list, got 3"),
        ({"layers": [2, 0, 2]}, r"layers must be all different, got \[2, 0, 2\]"),
        ({"most": 1}, r"most must be 0 or 2 or more, got 1"),
        ({"scale": 0}, r"scale must be above 0, got 0"),
        ({"scale": [0.5, 0]}, r"scale\[1\] must be above 0, got 0"),
    ],
)
def test_what_does_not_fit_is_named(given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Fields(**given)


def test_what_fits_is_taken() -> None:
    Fields(strengths=[2], layers=[3, 1], most=2, scale=[0.5, 2])
    rules = {name: rule_of(hint) for name, hint in declared_types(Fields).items()}
    assert rules["strengths"] == "growing, 1 or more items, each above 0"
    assert rules["most"] == "0 or 2 or more"


def test_a_config_comes_back_from_plain_json_types() -> None:
    config = Fields(strengths=[2], layers=[3, 1], most=2, scale=[0.5, 2], folder=Path("a") / "b")
    plain = json.loads(json.dumps(encode_config(config)))
    assert plain["loss"] == {"type": "l1", "weight": 1.0, "schedule": None}
    assert decode_config(Fields, plain, where="test") == config
