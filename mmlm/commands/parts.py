"""Finds every family of parts in both packages, and what each part says of itself."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator

from visual_tokenizer.registry import Family

PACKAGES = ("visual_tokenizer", "mmlm")


def families() -> Iterator[Family]:
    """Yield a family for each package whose module `base` defines `PART`."""
    for name in PACKAGES:
        root = importlib.import_module(name)
        for found in pkgutil.walk_packages(root.__path__, prefix=f"{name}."):
            if found.ispkg and importlib.util.find_spec(f"{found.name}.base") is not None:
                if hasattr(importlib.import_module(f"{found.name}.base"), "PART"):
                    yield Family(found.name)


def list_parts() -> dict[str, dict[str, str]]:
    """Return package → name of the part → first line of its file's docstring, plugins included.

    A part that cannot be imported says why instead.
    """
    return {family.package: {name: describe(family, name) for name in family.names()} for family in families()}


def describe(family: Family, name: str) -> str:
    """Return the first line of a part's docstring, or why it cannot be loaded."""
    try:
        part = family.get(name)
    except Exception as error:  # a plugin may fail in any way; the list must still be shown
        return f"cannot be loaded: {type(error).__name__}: {' '.join(str(error).split())}"
    module = importlib.import_module(part.__module__)
    return ((module.__doc__ or part.__doc__ or "").strip().splitlines() or [""])[0]
