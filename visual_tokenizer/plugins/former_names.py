"""Modules and names that plugins of version 0.1 may import, under the names they had then.

A module that moved is found under its former name, with a warning that names the new one; an error class that was
folded into `UserError` is given as that.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from visual_tokenizer.errors import MissingFileError, UserError

logger = logging.getLogger(__name__)

MODULES: dict[str, str] = {}
"""Former name of a module → where its contents are."""

ERRORS = {
    "visual_tokenizer.metrics.base": ("NoDataError",),
    "visual_tokenizer.backbones.base": ("UnsuitablePixelsError", "WeightsMismatchError"),
    "visual_tokenizer.convert.links": ("LayoutError",),
    "visual_tokenizer.processing": ("InvalidImageError", "InvalidPixelsError"),
    "visual_tokenizer.modeling": ("PixelsError",),
    "mmlm.layouts.base": ("GridError",),
}
"""Module → classes that it defined; each is `UserError` now."""


class _FormerModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a module under its former name; asked last, so a module that is there goes first."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name in MODULES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        now = MODULES[spec.name]
        logger.warning("%s is now %s: change the plugin that imports it", spec.name, now)
        module, found = ModuleType(spec.name), importlib.import_module(now)

        def get(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            if not hasattr(found, name) and name.endswith("Error"):
                return MissingFileError if "NotFound" in name else UserError
            return getattr(found, name)

        module.__getattr__ = get  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: the contents are looked up where they are."""


_finder = _FormerModules()


def know_former_names(families: Sequence[str] = ()) -> None:
    """Let what is imported from here on find modules by their former names, and folded errors in their modules.

    Args:
        families: packages whose `base` is given the errors that it defined.
    """
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
    for name, errors in ERRORS.items():
        if name in sys.modules or name.rpartition(".")[0] in families:
            module = importlib.import_module(name)
            for error in errors:
                if not hasattr(module, error):
                    setattr(module, error, UserError)
