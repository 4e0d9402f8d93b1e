"""Recipes: typed dataclasses read from YAML, with fields overridden on the command line.

draccus's own argument parser is not used: it lists the fields of every choice before it parses, which never ends where
a part holds parts of its own family (a residual quantizer of quantizers, a latent-query encoder on a CNN).
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import inspect
import itertools
import os
import subprocess
import sys
import textwrap
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from visual_tokenizer.errors import MissingFileError
from visual_tokenizer.fields.decoding import ConfigError, decode_config
from visual_tokenizer.fields.encoding import encode_config
from visual_tokenizer.fields.former import set_field
from visual_tokenizer.fields.ranges import declared_types, rule_of
from visual_tokenizer.registry import PartConfig
from visual_tokenizer.runs.files import save_text

Recipe = TypeVar("Recipe")

_RECORDED_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "peft", "deepspeed", "mmlm")


def read_recipe(cls: type[Recipe], path: str | os.PathLike[str] | None, overrides: dict[str, Any]) -> Recipe:
    """Build a recipe from a YAML file and dotted overrides.

    Args:
        cls: the recipe's dataclass.
        path: YAML file; None starts from the defaults.
        overrides: dotted key → YAML-decoded value; naming another `type` for a section drops its other keys.

    Raises:
        FileNotFoundError: no such file.
        ConfigError: unknown key or wrong value, with the key, the file and the nearest valid key.
    """
    values: dict[str, Any] = {}
    if path is not None:
        if not Path(path).is_file():
            raise MissingFileError(f"recipe {path} does not exist; recipes are in recipes/tokenizer and recipes/lm")
        values = read_yaml(path)
    for key, value in overrides.items():
        set_field(cls, values, key, value)
    return decode_config(cls, values, where=str(path) if path is not None else cls.__name__)


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: it holds something else; the message names the file and the place in it.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of keys to values, got {type(values).__name__}")
    return values


def parse_arguments(cls: type[Recipe], arguments: Sequence[str] | None = None, *, program: str, about: str) -> Recipe:
    """Read a recipe from `--config FILE --section.field VALUE …`; values are YAML.

    `--help` prints every field with its default and meaning, and exits.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--help" in words or "-h" in words:
        print(help_text(cls, program=program, about=about))
        raise SystemExit(0)
    path: str | None = None
    overrides: dict[str, Any] = {}
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"{program}: expected --key value, got '{word}'; see --help")
        key, has_value, value = word[2:].partition("=")
        if not has_value:
            if not words:
                raise ConfigError(f"{program}: --{key} needs a value; see --help")
            value = words.pop(0)
        if key == "config":
            path = value
        else:
            overrides[key] = yaml.safe_load(value)
    return read_recipe(cls, path, overrides)


def with_smoke(arguments: Sequence[str]) -> list[str]:
    """Replace `--smoke true` by two steps and the recipe's section `smoke`, which later arguments override."""
    words = list(arguments)
    joined = [word.partition("=")[0] for word in words]
    if "--smoke" not in joined:
        return words
    place = joined.index("--smoke")
    is_one_word = "=" in words[place]
    value = words[place].partition("=")[2] if is_one_word else "".join(words[place + 1 : place + 2])
    rest = words[:place] + words[place + (1 if is_one_word else 2) :]
    if yaml.safe_load(value) is not True:
        return rest
    path = next((following for word, following in itertools.pairwise(rest) if word == "--config"), None)
    path = next((word.partition("=")[2] for word in rest if word.startswith("--config=")), path)
    if path is None or not os.path.isfile(path):
        return rest
    smoke = {"training.max_steps": 2, **(read_yaml(path).get("smoke") or {})}
    overrides = [f"--{key}={yaml.safe_dump(item, default_flow_style=True)}" for key, item in smoke.items()]
    return overrides + rest


def help_text(cls: type, *, program: str, about: str) -> str:
    """Describe every field of a recipe: key, default, meaning."""
    lines = [about.strip(), "", f"Usage: {program} --config RECIPE.yaml [--section.field VALUE …]", "", "Fields:"]
    lines += _describe(cls, prefix="")
    return "\n".join(lines)


def field_meanings(cls: type) -> dict[str, str]:
    """Return the string literal that stands under each field of a dataclass, those of its bases included."""
    meanings: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for statement, following in itertools.pairwise(statements):
            if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
                continue
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                meanings[statement.target.id] = str(following.value.value)
    return meanings


def _describe(cls: type, prefix: str) -> list[str]:
    lines = []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        inner: Any = next((a for a in (kind, *typing.get_args(kind)) if dataclasses.is_dataclass(a)), None)
        doc = " ".join(field_meanings(cls).get(field.name, "").split())
        name = f"{prefix}{field.name}"
        if inner is not None and issubclass(inner, PartConfig):
            lines.append(f"  --{name}.type  one of {', '.join(inner.family.names())}. {doc}")
        elif inner is not None:
            lines.append(f"  {name}: {doc}")
            lines += _describe(inner, prefix=f"{name}.")
        else:
            default = "required" if field.default is dataclasses.MISSING else repr(field.default)
            if field.default_factory is not dataclasses.MISSING:
                default = repr(field.default_factory())
            rule = rule_of(declared_types(cls)[field.name])
            lines.append(f"  --{name}  ({default})  {doc}" + f" [{rule}]" * bool(rule))
    return lines


def recipe_to_dict(recipe: Any) -> dict[str, Any]:
    """Return a recipe in plain JSON types, every default written out."""
    encoded: dict[str, Any] = encode_config(recipe)
    return encoded


def provenance() -> dict[str, Any]:
    """Return the versions of the packages that matter and the git revision, if there is one."""
    versions = {"python": sys.version.split()[0]}
    for package in _RECORDED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return {"versions": versions, "git_revision": git.stdout.strip() or None}


def save_recipe(recipe: Any, folder: str | os.PathLike[str]) -> Path:
    """Write `recipe.yaml` (resolved, with provenance as a comment) into `folder`, whole or not at all."""
    comment = "".join(f"# {line}\n" for line in yaml.safe_dump(provenance(), sort_keys=False).splitlines())
    body = yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True)
    target = Path(folder) / "recipe.yaml"
    save_text(comment + body, target)
    return target
