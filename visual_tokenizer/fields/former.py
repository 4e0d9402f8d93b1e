"""Former names and values of fields, which recipes and configs that were written before hold: read, with a warning."""

from __future__ import annotations

import dataclasses
import functools
import logging
import typing
from collections.abc import Mapping
from typing import Any

from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Section

logger = logging.getLogger(__name__)

_ABSENT = object()


def take_former_spellings(cls: Any, value: dict[str, Any], key: str) -> None:
    """Put former names and values in the fields of a section by what they are now.

    Args:
        cls: the section's dataclass, with `renamed` and `former_values`.
        value: its plain fields, changed in place.
        key: of the section, for messages.

    Raises:
        UserError: a field is there by its name and by a former one.
    """
    if not issubclass(cls, Section):
        return
    for former, now in cls.renamed.items():
        if (found := _pop(value, former)) is _ABSENT:
            continue
        _tell(key, former, now)
        if now is None:
            continue
        if _pop(dict(value), now) is not _ABSENT:
            raise UserError(f"{below(key, former)} is the former name of {below(key, now)}: give the latter alone")
        _put(value, now, found)
    for name, values in cls.former_values.items():
        found = value.get(name)
        if isinstance(found, (str, bool)) and found in values:
            logger.warning("%s: %s is now written %s", below(key, name), found, values[found])
            value[name] = values[found]


def set_field(cls: Any, values: dict[str, Any], key: str, value: Any, where: str = "") -> None:
    """Set a field of plain `values`, by its name or a former one, in place of what stands under either.

    Args:
        cls: the dataclass that `values` are for; None: not known.
        key: dotted, with `_` or `-`; naming another `type` for a section drops its other keys.
        where: key of the section that `values` are, for messages.
    """
    if isinstance(cls, type) and issubclass(cls, Section):
        written = key.replace("-", "_")
        for former, now in cls.renamed.items():
            if written in (former, now):
                _pop(values, former)
            if written == former:
                _tell(where, former, now)
                return None if now is None else set_field(cls, values, now, value, where)
    name, _, rest = key.partition(".")
    if dataclasses.is_dataclass(cls):  # else these are names of somebody else, such as columns
        name = name.replace("-", "_")
    if rest:
        section = values.get(name)
        if not isinstance(section, dict):
            values[name] = section = {}
        # Not a copy: a section that a recipe names twice (`&cnn`, `*cnn`) is overridden at both places.
        return set_field(_section_of(cls, name, section), section, rest, value, below(where, name))
    if name == "type" and values.get("type") not in (None, value):
        values.clear()
    values[name] = value


def below(key: str, name: str) -> str:
    """Return the dotted key of a field in the section `key`, which may be empty."""
    return f"{key}.{name}" if key else name


def _section_of(cls: Any, name: str, values: Mapping[str, Any]) -> Any:
    """Return the dataclass of a field that holds a section, or None."""
    hint = typing.get_type_hints(cls).get(name) if dataclasses.is_dataclass(cls) else None
    section: Any = next((kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)), None)
    if section is None or "family" not in vars(section):
        return section
    kind = values.get("type")
    return section.family.get(kind).Config if kind in section.family.names() else None


@functools.cache  # once a program: a config is read several times
def _tell(key: str, former: str, now: str | None) -> None:
    if now is None:
        logger.warning("%s is no longer used: it is ignored", below(key, former))
    else:
        logger.warning("%s is now called %s", below(key, former), below(key, now))


def _pop(values: dict[str, Any], key: str) -> Any:
    """Take what stands at a dotted key out of plain fields; the sections on the way are copied."""
    name, _, rest = key.partition(".")
    if not rest:
        return values.pop(name, _ABSENT)
    if not isinstance(values.get(name), Mapping):
        return _ABSENT
    section = dict(values[name])
    found = _pop(section, rest)
    if found is not _ABSENT:
        values[name] = section
    return found


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key of plain fields; the sections on the way are copied."""
    name, _, rest = key.partition(".")
    if rest:
        section = values.get(name)
        section = dict(section) if isinstance(section, Mapping) else {}
        _put(section, rest, value)
        value = section
    values[name] = value
