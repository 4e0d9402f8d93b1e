"""Parts are found by name: the key in a recipe is the stem of the file that holds the part.

A *family* is a package (`visual_tokenizer.quantizers`); a *part* is one module of it that defines exactly one
subclass of the family's base class, with its config dataclass as the attribute `Config`. Nothing is listed by hand
and nothing is imported before it is asked for, so a new part is one new file.

Parts of other people are found in folders named by the environment variable `VISUAL_TOKENIZER_PLUGINS`
(`os.pathsep`-separated). Such a folder mirrors this project: `visual_tokenizer/quantizers/foo.py`,
`recipes/tokenizer/foo.yaml`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any, ClassVar

from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.decoding import ConfigError as ConfigError
from visual_tokenizer.fields.decoding import closest, decode_config
from visual_tokenizer.fields.encoding import encode_config
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.plugins import PLUGINS_VARIABLE as PLUGINS_VARIABLE
from visual_tokenizer.plugins import plugin_folders as plugin_folders
from visual_tokenizer.plugins.former_names import know_former_names


class UnknownPartError(UserError, KeyError):
    """A recipe or call names a part that no file defines."""

    def __str__(self) -> str:
        return str(self.args[0])


class PartDefinitionError(UserError, TypeError):
    """A part's file does not define exactly one part."""


class Family:
    """All parts of one package.

    Args:
        package: dotted name of the package that holds the parts, one a module; `base` holds the base class.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.label = package.rsplit(".", 1)[-1]

    def _import_package(self) -> ModuleType:
        package = importlib.import_module(self.package)
        folders = plugin_folders()
        if folders:
            know_former_names([self.package])
        for folder in folders:
            path = folder.joinpath(*self.package.split("."))
            if path.is_dir() and str(path) not in package.__path__:
                package.__path__.append(str(path))
        return package

    def names(self) -> list[str]:
        """Return the keys of all parts, sorted, without importing them."""
        found = pkgutil.iter_modules(self._import_package().__path__)
        return sorted({m.name for m in found if m.name != "base" and not m.name.startswith("_")})

    @functools.cache  # noqa: B019 - families live as long as the program
    def get(self, name: str) -> Any:
        """Import the file called `name` and return its part.

        Raises:
            UnknownPartError: no such file; the message lists what there is and the nearest name.
            PartDefinitionError: the file defines no part, or several.
        """
        known = self.names()
        if name not in known:
            raise UnknownPartError(
                f"no part '{name}' in {self.label}: known are {', '.join(known)}.{closest(name, known)}"
            )
        module = importlib.import_module(f"{self.package}.{name}")
        base = importlib.import_module(f"{self.package}.base").PART
        parts = [
            value
            for value in vars(module).values()
            if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
        ]
        if len(parts) != 1:
            raise PartDefinitionError(
                f"{module.__file__}: a file in {self.label} defines exactly one {base.__name__}; "
                f"found {[part.__name__ for part in parts]}"
            )
        if "Config" not in vars(parts[0]):
            raise PartDefinitionError(f"{module.__file__}: {parts[0].__name__} has no attribute `Config`")
        return parts[0]

    def config(self, section: Mapping[str, Any] | PartConfig) -> Any:
        """Turn `{"type": name, **fields}` into the part's config dataclass."""
        if isinstance(section, PartConfig):
            return section
        fields = dict(section)
        name = fields.pop("type", None)
        if name is None:
            raise UnknownPartError(
                f"a section of {self.label} needs the key 'type', one of {', '.join(self.names())}; got {dict(section)}"
            )
        return decode_config(self.get(name).Config, fields, where=f"{self.label}.{name}")

    def configs(
        self, entries: Iterable[str | Mapping[str, Any] | PartConfig], field: str, *, is_repeatable: bool = False
    ) -> list[Any]:
        """Return the configs of a recipe's list of parts: names, or `{type: name, field: value}`.

        Args:
            entries: what the recipe's field holds.
            field: its name.
            is_repeatable: whether a part may be there twice.

        Raises:
            ConfigError: no such part (with the nearest one), a wrong field, or a part twice.
        """
        if isinstance(entries, (str, Mapping)):
            raise ConfigError(f"{field} must be a list of names or mappings with a 'type', got {entries!r}")
        found = []
        for entry in entries:
            section = {"type": entry} if isinstance(entry, str) else entry
            if not isinstance(section, (Mapping, PartConfig)):
                raise ConfigError(f"{field} must hold names or mappings with a 'type', got {entry!r}")
            try:
                found.append(self.config(section))
            except UnknownPartError as error:
                raise ConfigError(f"{field}: {error}") from error
        names = [config.type for config in found]
        if twice := sorted({name for name in names if names.count(name) > 1 and not is_repeatable}):
            raise ConfigError(f"{field} must hold each once, got {', '.join(twice)} twice")
        return found

    def build(self, section: Mapping[str, Any] | PartConfig, **context: Any) -> Any:
        """Build the part that `section` describes; `context` goes to its constructor."""
        config = self.config(section)
        return self.get(config.type)(config, **context)


class PartConfig(Section):
    """Base of every part's config dataclass."""

    family: ClassVar[Family]

    def __init_subclass__(cls, package: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if package is not None:
            cls.family = Family(package)

    @property
    def type(self) -> str:
        """The key of the part in a recipe."""
        return type(self).__module__.rsplit(".", 1)[-1]

    def to_dict(self) -> dict[str, Any]:
        """Return `{"type": name, **fields}` in plain JSON types."""
        encoded: dict[str, Any] = encode_config(self)
        return encoded
