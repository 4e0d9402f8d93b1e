"""Ranges are declared on a field's type and checked in one place.

`levels: list[Annotated[int, Ge(2)]]`, `decay: Annotated[float, Interval(ge=0, lt=1)]`, `grid: Literal["a", "b"]`: a
dataclass that derives from `Section` refuses a value outside, by name, whether it was read from a recipe or built in
Python. Rules between fields stay in `__post_init__`, which calls `super().__post_init__()` first.

A number is finite; None is refused where the type doesn't allow it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, Union

from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen, MultipleOf

from visual_tokenizer.errors import UserError


@dataclasses.dataclass(frozen=True)
class Growing(BaseMetadata):
    """Each item of a list is larger than the one before."""


@dataclasses.dataclass(frozen=True)
class Different(BaseMetadata):
    """No item of a list is there twice."""


OF_LISTS = (MinLen, MaxLen, Growing, Different)


class Section:
    """Base of the dataclasses that recipes and configs are made of."""

    renamed: ClassVar[Mapping[str, str | None]] = {}
    """Former name of a field → its name now, both dotted where a section below is meant, or None where it is
    no longer used. The former one is still read, with a warning."""
    former_values: ClassVar[Mapping[str, Mapping[Any, Any]]] = {}
    """Field → former value → what is written now; the former one is still read, with a warning."""

    def __post_init__(self) -> None:
        check_ranges(self)


def check_ranges(section: Any) -> None:
    """Compare a dataclass's fields with what their types declare; a UserError names field, value and rule."""
    for name, hint in declared_types(section.__class__).items():
        _check(hint, getattr(section, name), name)


@functools.cache
def declared_types(cls: Any) -> dict[str, Any]:
    """Return the type of each field of a dataclass, with what is declared on it."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def rule_of(hint: Any) -> str:
    """Return the declared range of a type in words, or an empty string: `2 or more`, `in [0, 1)`, `each above 0`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        parts = [
            _bounds(arguments[1:]),
            _lengths(arguments[1:], "character" if arguments[0] is str else "item"),
            rule_of(arguments[0]),
        ]
        return ", ".join(part for part in parts if part)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if origin in (list, tuple, dict):
        inner = rule_of(next(a for a in reversed(arguments) if a is not Ellipsis)) if arguments else ""
        return f"each {inner}" if inner else ""
    if _is_union(origin):
        return " or ".join(part for part in map(rule_of, arguments) if part)
    return ""


def _is_union(origin: Any) -> bool:
    return origin is Union or origin is types.UnionType


def _check(hint: Any, value: Any, name: str) -> None:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        _check(arguments[0], value, name)
        _check_declared(arguments[1:], value, name)
    elif origin is Literal:
        if value not in arguments:
            raise UserError(f"{name} must be one of {', '.join(map(str, arguments))}, got {value!r}")
    elif _is_union(origin):
        _check_union(hint, value, name)
    elif origin in (list, tuple) and isinstance(value, (list, tuple)):
        inner = [a for a in arguments if a is not Ellipsis]
        for place, item in enumerate(value):
            _check(inner[min(place, len(inner) - 1)], item, f"{name}[{place}]")
    elif origin is dict and isinstance(value, Mapping):
        for key, item in value.items():
            _check(arguments[1], item, f"{name}.{key}")
    elif value is None and hint in (int, float, str, bool):
        raise UserError(f"{name} must be given, got null")
    elif hint in (int, float) and isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, got {value}")
    elif hint is int and isinstance(value, float) and not value.is_integer():
        raise UserError(f"{name} must be a whole number, got {value}")


def _check_union(union: Any, value: Any, name: str) -> None:
    """Pass where one choice takes the value; where several refuse it, the rule is that of all."""
    choices = typing.get_args(union)
    if value is None and type(None) in choices:
        return
    refusals = []
    for choice in choices:
        if choice is not type(None) and _may_be(choice, value):
            try:
                return _check(choice, value, name)
            except UserError as error:
                refusals.append(error)
    if len(refusals) > 1:
        raise UserError(f"{name} must be {rule_of(union)}, got {value!r}")
    if refusals:
        raise refusals[0]


def _may_be(hint: Any, value: Any) -> bool:
    """Whether a value is of the kind of a type, whatever its range."""
    while typing.get_origin(hint) is Annotated:
        hint = typing.get_args(hint)[0]
    origin = typing.get_origin(hint) or hint
    if origin is Literal:
        return any(type(value) is type(choice) for choice in typing.get_args(hint))
    if origin is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return not isinstance(origin, type) or isinstance(value, origin)


def _check_declared(declared: tuple[Any, ...], value: Any, name: str) -> None:
    if value is None:
        raise UserError(f"{name} must be given, got null")
    for rule in _flat(declared):
        if not _holds(rule, value, name):
            if isinstance(rule, (MinLen, MaxLen)):
                words = f"hold {_lengths(declared, 'character' if isinstance(value, str) else 'item')}"
            else:
                words = f"be {_bounds(declared)}"
            raise UserError(f"{name} must {words}, got {value!r}")


def _holds(rule: BaseMetadata, value: Any, name: str) -> bool:
    """Whether a value keeps one rule; not a number is outside every range."""
    try:
        match rule:
            case Ge(least):
                return value >= least
            case Gt(bound):
                return value > bound
            case Le(most):
                return value <= most
            case Lt(bound):
                return value < bound
            case MultipleOf(factor):
                return value % factor == 0
            case MinLen(least):
                return len(value) >= least
            case MaxLen(most):
                return len(value) <= most
            case Growing():
                return all(first < second for first, second in itertools.pairwise(value))
            case Different():
                return len(set(value)) == len(value)
    except TypeError as error:
        raise UserError(
            f"{name} must be {'a list' if isinstance(rule, OF_LISTS) else 'a number'}, got {value!r}"
        ) from error
    raise TypeError(f"{name}: {rule} is not a rule that is checked here")


def _flat(declared: Iterable[Any]) -> list[BaseMetadata]:
    rules: list[BaseMetadata] = []
    for item in declared:
        rules += _flat(item) if isinstance(item, GroupedMetadata) else [item] if isinstance(item, BaseMetadata) else []
    return rules


def _bounds(declared: tuple[Any, ...]) -> str:
    low, high, others = "", "", []
    for rule in _flat(declared):
        match rule:
            case Ge(bound):
                low = f"[{bound}"
            case Gt(bound):
                low = f"({bound}"
            case Le(bound):
                high = f"{bound}]"
            case Lt(bound):
                high = f"{bound})"
            case MultipleOf(bound):
                others.append(f"a multiple of {bound}")
            case Growing():
                others.append("growing")
            case Different():
                others.append("all different")
    if low and high:
        words = f"in {low}, {high}"
    elif low:
        words = f"{low[1:]} or more" if low[0] == "[" else f"above {low[1:]}"
    else:
        words = (f"at most {high[:-1]}" if high[-1] == "]" else f"below {high[:-1]}") if high else ""
    return " and ".join(part for part in (words, *others) if part)


def _lengths(declared: tuple[Any, ...], noun: str) -> str:
    least = next((rule.min_length for rule in _flat(declared) if isinstance(rule, MinLen)), 0)
    most = next((rule.max_length for rule in _flat(declared) if isinstance(rule, MaxLen)), None)
    if most is None:
        words = f"{least} or more" if least else ""
    else:
        words = str(least) if least == most else f"{least} to {most}"
    return f"{words} {noun}{'s' * (words != '1')}" if words else ""
