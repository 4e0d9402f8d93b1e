"""What a recipe begins with is what another one makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2] / "recipes"
RECIPES = {path: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.yaml"))}
TOLD = [(path, name, told[name]) for path, told in RECIPES.items() for name in
        ("model", "visual_tokenizer", "tokenizer", "initialize_from") if isinstance(told.get(name), str)]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "name", "folder"), [pytest.param(*told, id=f"{told[0].stem}-{told[1]}") for told in TOLD]
)
def test_a_recipe_begins_with_what_another_makes(path: Path, name: str, folder: str) -> None:
    made = {told[key] for told in RECIPES.values() for key in ("output_dir", "output") if key in told}
    assert folder.removesuffix("/final") in made


def test_all_results_are_in_the_folder_that_git_ignores() -> None:
    made = [told[key] for told in RECIPES.values() for key in ("output_dir", "output") if key in told]
    assert all(folder.startswith("run/") for folder in made)
