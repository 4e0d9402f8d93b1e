"""Every part of every family: one file, one class, a named source, documented fields."""

import dataclasses
import importlib
import inspect
import pkgutil
import re

import pytest

import mmlm
import visual_tokenizer
from visual_tokenizer.recipe import field_meanings
from visual_tokenizer.registry import PartConfig


def families():
    found = {}
    for package in (visual_tokenizer, mmlm):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if module.name.endswith(".base"):
                for value in vars(importlib.import_module(module.name)).values():
                    if isinstance(value, type) and issubclass(value, PartConfig) and "family" in vars(value):
                        found[value.family.package] = value
    return found


FAMILIES = families()
PARTS = [(package, name) for package, config in FAMILIES.items() for name in config.family.names()]


def test_the_families_are_found():
    assert {"visual_tokenizer.quantizers", "visual_tokenizer.encoders", "visual_tokenizer.losses"} <= set(FAMILIES)
    assert ("visual_tokenizer.quantizers", "vq") in PARTS


@pytest.mark.parametrize(("package", "name"), PARTS)
def test_part(package, name):
    part = FAMILIES[package].family.get(name)
    module = inspect.getmodule(part)
    assert module.__name__.rsplit(".", 1)[-1] == name
    assert module.__doc__
    assert part.__doc__
    assert issubclass(part.Config, FAMILIES[package])
    for field in dataclasses.fields(part.Config):
        assert field_meanings(part.Config).get(field.name), f"{part.Config.__name__}.{field.name} says nothing"
    if package in ("visual_tokenizer.quantizers", "visual_tokenizer.encoders", "visual_tokenizer.decoders"):
        assert re.search(r"Papers?: .*(arXiv:\d{4}\.\d{5}|\(.* et al\., \d{4}\))", module.__doc__, re.DOTALL)
