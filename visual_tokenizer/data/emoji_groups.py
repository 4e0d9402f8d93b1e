"""Unicode's groups of emoji (`Food & Drink`) and their subgroups (`food-fruit`), from the table beside this file."""

from __future__ import annotations

import functools
from importlib.resources import files

from visual_tokenizer.data.openmoji import significant, without_skin_tones

TABLE = "emoji_groups.tsv"


@functools.cache
def _table() -> dict[tuple[int, ...], tuple[str, str]]:
    found = {}
    for line in (files("visual_tokenizer.data") / TABLE).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            group, subgroup, keys = line.split("\t")
            found.update({significant(key): (group, subgroup) for key in keys.split()})
    return found


def group_and_subgroup(key: str) -> tuple[str, str]:
    """Return both of an emoji's key such as `1F44D-1F3FB`, in any skin tone; empty where Unicode has none."""
    plain = without_skin_tones(key)
    return _table().get(significant(plain or key), ("", ""))
