"""Every field of every config and recipe says on its type what it may hold, and refuses what is outside by name."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import math
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen, MultipleOf

from visual_tokenizer import build_quantizer, train
from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.decoding import ConfigError, decode_config
from visual_tokenizer.fields.ranges import Different, Growing, Section, declared_types
from visual_tokenizer.registry import PLUGINS_VARIABLE

ROOT = Path(__file__).parents[2]

ANY_NUMBER = {
    # From either end, -1 being the last; how many there are depends on another part.
    "FeaturesRecipe.level",
    "TaughtConfig.level",
    "DecoderAlignmentConfig.level",
    "FeatureReconstructionConfig.level",
    "CaptionAlignmentConfig.position",
    "SigmoidContrastiveConfig.bias",  # where a learned number begins
}
"""Fields of numbers for which every one is legal."""


def _sections() -> list[type]:
    """Return all dataclasses of both packages that derive from Section, plugins left out."""
    for name in ("visual_tokenizer", "mmlm"):
        for module in pkgutil.walk_packages([str(ROOT / name)], f"{name}."):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:  # an extra that is not installed
                if error.name is None or error.name.split(".")[0] in ("visual_tokenizer", "mmlm"):
                    raise

    def below(cls: type) -> Iterator[type]:
        for child in cls.__subclasses__():
            yield child
            yield from below(child)

    found = {cls for cls in below(Section) if dataclasses.is_dataclass(cls) and _is_ours(cls)}
    return sorted(found, key=lambda cls: (cls.__module__, cls.__qualname__))


def _is_ours(cls: type) -> bool:
    return any((ROOT / name) in Path(inspect.getfile(cls)).parents for name in ("visual_tokenizer", "mmlm"))


SECTIONS = _sections()
every_section = pytest.mark.parametrize("cls", SECTIONS, ids=lambda cls: f"{cls.__module__}.{cls.__qualname__}")


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _rules(hint: Any) -> list[BaseMetadata]:
    """Return what is declared on a type itself, intervals taken apart."""
    rules: list[Any] = list(typing.get_args(hint)[1:]) if typing.get_origin(hint) is Annotated else []
    while any(isinstance(rule, GroupedMetadata) for rule in rules):
        rules = [one for rule in rules for one in (list(rule) if isinstance(rule, GroupedMetadata) else [rule])]
    return [rule for rule in rules if isinstance(rule, BaseMetadata)]


def _parts(hint: Any) -> tuple[Any, ...]:
    """Return the types that a type is made of."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        return arguments[:1]
    return () if typing.get_origin(hint) is Literal else tuple(a for a in arguments if a is not Ellipsis)


def _bare_numbers(hint: Any) -> bool:
    """Whether a type holds a number that has no range."""
    if typing.get_origin(hint) is Annotated and _parts(hint)[0] in (int, float):
        return not _rules(hint)
    return hint in (int, float) or any(map(_bare_numbers, _parts(hint)))


def _dataclasses(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for part in _parts(hint):
        yield from _dataclasses(part)


def _inside(hint: Any) -> Any:
    """Return a value that a type takes."""
    rules, origin = _rules(hint), typing.get_origin(hint)
    if origin is Annotated:
        return _inside_rules(_parts(hint)[0], rules)
    if origin is Literal:
        return typing.get_args(hint)[0]
    if _is_union(hint):
        return None if type(None) in _parts(hint) else _inside(_parts(hint)[0])
    if origin in (list, tuple, dict):
        return origin()
    if isinstance(hint, type) and issubclass(hint, Section):
        return _simplest(hint)
    return {int: 1, float: 1.0, bool: False, str: "x"}.get(hint)


def _inside_rules(hint: Any, rules: list[BaseMetadata]) -> Any:
    if typing.get_origin(hint) is list:
        least = next((rule.min_length for rule in rules if isinstance(rule, MinLen)), 0)
        item = _inside(_parts(hint)[0])
        return [item + n if isinstance(item, int) and Growing() in rules else item for n in range(least)]
    if hint is str:
        return "x"
    factor = next((rule.multiple_of for rule in rules if isinstance(rule, MultipleOf)), 1)
    value: Any = 0
    for rule in rules:
        match rule:
            case Ge(bound):
                value = max(value, math.ceil(bound / factor) * factor if hint is int else bound)
            case Gt(bound):
                value = max(value, (bound // factor + 1) * factor if hint is int else bound + 1e-3)
    return value if hint is int else float(value)


def _simplest(cls: Any) -> Any:
    """Build a config of its required fields alone; of a family the first part that can be built so."""
    if "family" not in vars(cls):
        return cls(**_required(cls))
    for name in cls.family.names():
        config = cls.family.get(name).Config
        with contextlib.suppress(UserError):  # raised where one of two fields must be given
            return config(**_required(config))
    raise AssertionError(f"no part of {cls.family.package} can be built of its required fields alone")


def _required(cls: Any) -> dict[str, Any]:
    hints = declared_types(cls)
    return {
        field.name: _inside(hints[field.name])
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }


def _outside(hint: Any) -> list[Any]:
    """Return values that break each rule of a type once, and those of the types within it."""
    origin, rules = typing.get_origin(hint), _rules(hint)
    if origin is Literal:
        return ["no such choice"]
    if origin is Annotated:
        inner = _parts(hint)[0]
        wrong = [value for rule in rules for value in _breaking(rule, inner, rules)]
        items = _outside(inner)
        if typing.get_origin(inner) is list:  # lists of the declared length with one wrong item
            good = _inside(hint) or [_inside(_parts(inner)[0])]
            items = [[*good[:-1], bad[0]] for bad in items if bad]
        return wrong + items
    if _is_union(hint):
        return [value for part in _parts(hint) if len(_kinds(hint)) == 1 for value in _outside(part)]
    if origin in (list, tuple):
        return [[value] for value in _outside(_parts(hint)[0])]
    if origin is dict:
        return [{"name": value} for value in _outside(_parts(hint)[1])]
    return [math.nan, math.inf] if hint is float else []


def _kinds(union: Any) -> list[Any]:
    """Return the choices of a union but None."""
    return [part for part in _parts(union) if part is not type(None)]


def _breaking(rule: BaseMetadata, hint: Any, rules: list[BaseMetadata]) -> list[Any]:
    step = 1 if hint is int else 1e-3
    match rule:
        case Ge(bound):
            return [bound - step]
        case Gt(bound):
            return [bound, bound - step]
        case Le(bound):
            return [bound + step]
        case Lt(bound):
            return [bound, bound + step]
        case MultipleOf(factor):
            return [factor + 1]
    if hint is str:
        return [""]
    item = _inside(_parts(hint)[0])
    match rule:
        case MinLen(least):
            return [[item] * (least - 1)]
        case MaxLen(most):
            return [[item] * (most + 1)]
        case Growing() | Different():
            return [[item] * max(2, *(r.min_length for r in rules if isinstance(r, MinLen)), 2)]
    raise AssertionError(f"{rule} is not known here")


def _cases(cls: type) -> list[tuple[str, Any]]:
    return [(name, value) for name, hint in declared_types(cls).items() for value in _outside(hint)]


def test_configs_are_found():
    names = {cls.__name__ for cls in SECTIONS}
    wanted = {"FSQConfig", "TokenizerRecipe", "PretrainingRecipe", "LMRecipe", "MixtureMember", "Emu3LayoutConfig"}
    assert wanted <= names
    assert len(SECTIONS) > 150
    assert sum(len(_cases(cls)) for cls in SECTIONS) > 600


@every_section
def test_what_a_recipe_is_made_of_is_checked(cls):
    parts = {part for hint in declared_types(cls).values() for part in _dataclasses(hint)}
    assert all(issubclass(part, Section) for part in parts), parts


def test_every_recipe_section_and_config_is_checked():
    modules = [module for name, module in sys.modules.items() if name.split(".")[0] in ("visual_tokenizer", "mmlm")]
    defined = {
        value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type)
        and dataclasses.is_dataclass(value)
        and value.__module__ == module.__name__
        and re.search(r"(Recipe|Section|Config|Stage|Limits)$", name)
        and not hasattr(value, "model_type")  # transformers' own
    }
    assert defined
    assert {cls.__name__ for cls in defined if not issubclass(cls, Section)} == set()


@every_section
def test_numbers_have_a_range(cls):
    owners = [base.__name__ for base in cls.__mro__]
    bare = {name for name, hint in declared_types(cls).items() if _bare_numbers(hint)}
    assert {name for name in bare if not any(f"{owner}.{name}" in ANY_NUMBER for owner in owners)} == set()


@every_section
def test_values_outside_are_refused_by_name(cls):
    for name, value in _cases(cls):
        with pytest.raises(UserError) as refusal:
            cls(**{**_required(cls), name: value})
        assert re.match(rf"{name}\b", str(refusal.value)), (name, value, str(refusal.value))


@every_section
def test_values_outside_are_refused_by_their_dotted_key(cls):
    if "family" in vars(cls):
        pytest.skip("the base of a family has no file of its own")
    outer = dataclasses.make_dataclass("Outer", [("inner", cls)], bases=(Section,), kw_only=True)
    for name, value in _cases(cls):
        with pytest.raises(ConfigError) as refusal:
            decode_config(outer, {"inner": {**_required(cls), name: value}}, where="file.yaml")
        assert re.match(rf"file\.yaml: inner\.{name}\b", str(refusal.value)), (name, value, str(refusal.value))


PLUGIN = '''"""Signs of the channels, written before ranges could be declared."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig
from visual_tokenizer.registry import ConfigError


@dataclass(kw_only=True)
class FormerSignsConfig(QuantizerConfig):
    """Fields of former_signs."""

    bits: int = 6
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.bits < 1:
            raise ConfigError(f"bits must be 1 or more, got {self.bits}")


class FormerSigns(Quantizer):
    """One bit a channel."""

    Config = FormerSignsConfig

    def __init__(self, config: FormerSignsConfig) -> None:
        super().__init__(config)
        self.code_dim, self.codebook_size = config.bits, 2**config.bits

    def quantize(self, latents: torch.Tensor) -> QuantizerOutput:
        bits = latents.detach() > 0
        weights = 2 ** torch.arange(self.config.bits)
        return QuantizerOutput(codes=bits.float() * self.config.scale, indices=(bits.long() * weights).sum(-1))

    def lookup(self, indices: torch.Tensor) -> torch.Tensor:
        return (indices[..., None] // 2 ** torch.arange(self.config.bits) % 2).float()
'''


def test_a_plugins_own_checks_still_work(tmp_path, monkeypatch):
    folder = tmp_path / "visual_tokenizer" / "quantizers"
    folder.mkdir(parents=True)
    (folder / "former_signs.py").write_text(PLUGIN)
    package = importlib.import_module("visual_tokenizer.quantizers")
    monkeypatch.setattr(package, "__path__", list(package.__path__))  # put back afterwards
    monkeypatch.setenv(PLUGINS_VARIABLE, str(tmp_path))
    quantizer = build_quantizer("former_signs", bits=3, scale=math.inf)
    assert (quantizer.codebook_size, quantizer.config.scale) == (8, math.inf)
    assert quantizer.config.to_dict() == {"type": "former_signs", "bits": 3, "scale": math.inf}
    with pytest.raises(ConfigError, match=r"former_signs: bits must be 1 or more, got 0"):
        build_quantizer("former_signs", bits=0)


def test_the_training_program_names_the_dotted_key_in_one_line(tmp_path, capsys):
    words = ["--output_dir", str(tmp_path / "run"), "--quantizer.type", "fsq", "--quantizer.levels", "[1]"]
    assert train.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "quantizer.levels[0] must be 2 or more, got 1" in line
    assert not (tmp_path / "run").exists()
