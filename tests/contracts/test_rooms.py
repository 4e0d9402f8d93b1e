"""The house: how many files stand at the roots, who may import whom, and that a name means one thing."""

from __future__ import annotations

import ast
import collections
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from mmlm.commands.parts import families

ROOT = Path(__file__).parents[2]
PACKAGES = ("visual_tokenizer", "mmlm")
MOST_FILES_AT_A_ROOT = {"visual_tokenizer": 16, "mmlm": 12}
MOST_NAMES_IN_LAYERS, MOST_EXCEPTIONS = 50, 10
PROGRAMS = {f"visual_tokenizer.{name}" for name in "train evaluate pretrain probe doctor features palette".split()}
PROGRAMS |= {"visual_tokenizer.convert.__main__", "mmlm.cli", "mmlm.train", "mmlm.data.tokenize"}


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def contracts() -> list[dict]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["tool"]["importlinter"]["contracts"]


@pytest.mark.parametrize("package", PACKAGES)
def test_few_files_stand_at_a_root(package):
    assert len(list((ROOT / package).glob("*.py"))) <= MOST_FILES_AT_A_ROOT[package]


def test_every_room_stands_in_a_contract_and_there_are_few_names_and_exceptions():
    layered = [contract for contract in contracts() if contract["type"] == "layers"]
    assert [contract["containers"] for contract in layered] == [[package] for package in PACKAGES]
    assert all(contract["exhaustive"] for contract in layered)
    names = [name for one in layered for layer in one["layers"] for name in re.split(r"[|: ]+", layer)]
    assert len(names) <= MOST_NAMES_IN_LAYERS
    # What is left out of the layers is the programs, which nobody imports: see below.
    left_out = {f"{one['containers'][0]}.{name}" for one in layered for name in one.get("exhaustive_ignores", [])}
    assert left_out <= PROGRAMS
    assert sum(len(contract.get("ignore_imports", [])) for contract in contracts()) <= MOST_EXCEPTIONS


def test_programs_are_imported_by_nobody():
    for name, path in modules():
        assert not PROGRAMS & set(imported(path)), name


def test_what_begins_with_an_underscore_is_imported_from_its_own_folder_only():
    for name, path in modules():
        room = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for other in imported(path):
            if other.startswith(PACKAGES):
                parent, _, leaf = other.rpartition(".")
                if re.match(r"_[a-z]", leaf) and (ROOT / f"{other.replace('.', '/')}.py").is_file():
                    assert parent == room, f"{name} imports {other}"


def test_parts_know_their_base_and_not_each_other():
    known = {f"{family.package}.{name}" for family in families() for name in family.names()}
    for name, path in modules():
        if name in known:
            family = name.rpartition(".")[0]
            others = {one for one in imported(path) if one in known and one.rpartition(".")[0] == family}
            assert not others, f"{name} imports {others}"


def test_no_two_things_bear_one_name():
    """A method's parts in several families may share the method's name, and so may what belongs to commands."""
    parts = {f"{family.package}.{name}" for family in families() for name in family.names()}
    homes = collections.defaultdict(list)
    for name, path in modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name)
    twice = {name: found for name, found in homes.items() if len(found) > 1 and not parts.issuperset(found)}
    assert not twice
