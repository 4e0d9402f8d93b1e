"""Plain values become dataclasses; a value that does not fit is named by its dotted key.

The walk over sections, parts and lists of them is written here, because draccus forgets on its way up which section
refused a value; what stands at the leaves (numbers, words, lists of them) draccus decodes.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping
from typing import Any

import draccus

from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.former import below, take_former_spellings


class ConfigError(UserError):
    """A recipe or config holds an unknown key or a value that its field doesn't allow."""


def closest(name: str, known: list[str]) -> str:
    """Return ` Did you mean 'x'?` for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def decode_config(cls: type, fields: Mapping[str, Any], where: str) -> Any:
    """Build dataclass `cls` from plain `fields`.

    Args:
        where: file, or name of the config, for messages.

    Raises:
        ConfigError: an unknown key (with the nearest valid one), a value of the wrong kind or outside its range, or
        fields that don't go together; the dotted key is named.
    """
    try:
        return _decode(cls, fields, "")
    except UserError as error:
        said = str(error)  # of a section as a whole it begins with a blank in place of a key
        raise ConfigError(f"{where}{'' if said.startswith(' must') else ': '}{said}") from error


def _decode(hint: Any, value: Any, key: str) -> Any:
    """Decode one value; the sections below it are walked."""
    origin = typing.get_origin(hint)
    arguments = [a for a in typing.get_args(hint) if a is not type(None)]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _decode_section(hint, value, key)
    if arguments and any(_holds_sections(a) for a in arguments):
        if origin is list and isinstance(value, (list, tuple)):
            return [_decode(arguments[0], item, f"{key}[{place}]") for place, item in enumerate(value)]
        if origin is dict and isinstance(value, Mapping):
            return {name: _decode(arguments[-1], item, f"{key}.{name}") for name, item in value.items()}
        if len(arguments) == 1 and origin not in (list, dict):  # Optional
            return None if value is None else _decode(arguments[0], value, key)
    try:
        return draccus.decode(hint, value)
    except Exception as error:  # draccus raises bare ones
        raise UserError(f"{key} must be {_kind(hint)}, got {value!r}") from error


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


def _kind(hint: Any) -> str:
    """Return what a field takes, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (list, tuple):
        return f"a list, each {_kind(arguments[0])}"
    if origin is dict:
        return "a mapping"
    return " or ".join(map(_kind, arguments)) if arguments else _KINDS.get(hint, str(hint))


def _holds_sections(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) or any(_holds_sections(a) for a in typing.get_args(hint))


def _decode_section(cls: Any, value: Any, key: str) -> Any:
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        raise UserError(f"{key} must be a section of fields, got {value!r}")
    value = dict(value)
    if "family" in vars(cls):  # a tagged choice: the part's own file says which fields there are
        known = cls.family.names()
        name = value.pop("type", None)
        if name not in known:
            near = closest(str(name), known)
            raise UserError(f"{below(key, 'type')} must be one of {', '.join(known)}, got {name!r}.{near}")
        cls = cls.family.get(name).Config
    take_former_spellings(cls, value, key)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in value:
        if name not in fields:
            near = closest(str(name), list(fields))
            raise UserError(f"{key}: " * bool(key) + f"unknown key '{name}'; valid are {', '.join(fields)}.{near}")
    for name, field in fields.items():
        is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if is_required and name not in value:
            raise UserError(f"{below(key, name)} is required")
    hints = typing.get_type_hints(cls)
    values = {name: _decode(hints[name], item, below(key, name)) for name, item in value.items()}
    try:
        return cls(**values)
    except ValueError as error:  # a plugin's own check raises a bare one
        raise UserError(_with_key(key, str(error), list(fields))) from error


def _with_key(key: str, message: str, fields: list[str]) -> str:
    """Put the section's key before what its own check said, which begins with a field or not."""
    first = re.match(r"\w*", message)
    begins_with_field = first is not None and first[0] in fields
    return f"{key}{'.' if begins_with_field else ': '}{message}" if key else message
