"""A config as plain JSON types: the inverse of `decoding`.

Written here, because draccus looks at a field's declared type on its way down, and not through `Annotated` in a list or
a union.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from enum import Enum
from typing import Any


def encode_config(value: Any) -> Any:
    """Return a dataclass, or what stands in its fields, in plain JSON types; parts begin with their `type`."""
    if dataclasses.is_dataclass(value):
        kind = {"type": getattr(value, "type")} if hasattr(value, "family") else {}  # noqa: B009 - not on any dataclass
        return kind | {field.name: encode_config(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: encode_config(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [encode_config(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    return os.fspath(value) if isinstance(value, os.PathLike) else value
