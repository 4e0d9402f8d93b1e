"""Short stories of related OpenMoji drawings, text and picture in turn: documents that need no download."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import datasets
from annotated_types import Ge, Interval

from mmlm.documents.base import Document, DocumentSource, DocumentSourceConfig, Part, Picture
from visual_tokenizer.data.emoji_groups import group_and_subgroup
from visual_tokenizer.data.openmoji import ATTRIBUTION
from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig
from visual_tokenizer.errors import UserError

OPENINGS = ("First comes {name}.", "Here is {name}.", "This is {name}.")
CONTINUATIONS = ("Then comes {name}.", "Next is {name}.", "And this is {name}.")
SHORTEST_KEYWORD = 4  # below are words like "of", "in", "a"
FEATURES = datasets.Features(
    {
        "key": datasets.Value("string"),
        "texts": datasets.List(datasets.Value("string")),
        "places": datasets.List(datasets.Value("int64")),
    }
)


@dataclass(kw_only=True)
class OpenMojiStoriesConfig(DocumentSourceConfig):
    """Stories of emoji that share a subgroup of Unicode's, or a word of their names."""

    stories: Annotated[int, Ge(1)] = 4000
    """Stories in all; training and held-out split have as many as their share of the emoji."""
    min_pictures: Annotated[int, Ge(2)] = 2
    """Fewest pictures of a story."""
    max_pictures: Annotated[int, Ge(2)] = 3
    """Most pictures of a story; min_pictures or more."""
    resolution: Annotated[int, Interval(ge=1, le=4096)] = 64
    """Side of the square pictures, in pixels."""
    sequences: bool = False
    """Use emoji of several code points too: flags, keycaps, people by gender, family and profession."""
    seed: Annotated[int, Ge(0)] = 0
    """Of the stories."""
    cache_dir: str | None = None
    """Folder for the rasterised set; null: `$VISUAL_TOKENIZER_CACHE` or `~/.cache/visual_tokenizer`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_pictures < self.min_pictures:
            raise UserError(
                f"max_pictures must be at least min_pictures = {self.min_pictures}, got {self.max_pictures}"
            )

    @property
    def attribution(self) -> str:
        return ATTRIBUTION


class OpenMojiStories(DocumentSource):
    """Text, picture, text, picture, …; story i of a split follows from the seed alone.

    Training stories are made of the training split of `openmoji` only, held-out ones of its held-out split.
    """

    Config = OpenMojiStoriesConfig

    def __init__(self, config: OpenMojiStoriesConfig) -> None:
        super().__init__(config)
        drawings = {
            "type": "openmoji",
            "resolution": config.resolution,
            "sequences": config.sequences,
            "cache_dir": config.cache_dir,
            "heldout_fraction": config.heldout_fraction,
        }
        self.drawings: Source = SourceConfig.family.build(drawings)
        self._pictures: datasets.Dataset | None = None

    def load_encoded(self, split: str) -> datasets.Dataset:
        rows: Any = self.drawings.load_encoded(split)
        groups = related(rows, self.config.min_pictures)
        share = len(rows) / len(self._all()) if len(rows) else 0
        count = round(self.config.stories * share)
        if not groups:
            raise DataSourceError(
                f"openmoji_stories: no {self.config.min_pictures} emoji of the split '{split}' ({len(rows)} emoji) "
                "are related: lower min_pictures or change heldout_fraction"
            )
        names, places = rows["caption"][:], rows["row"][:]
        stories = []
        for number in range(max(1, count)):
            key = f"{split}-{number:06d}"
            texts, chosen = self._story(key, names, groups)
            stories.append({"key": key, "texts": texts, "places": [places[one] for one in chosen]})
        return datasets.Dataset.from_list(stories, features=FEATURES)

    def document(self, row: Mapping[str, Any]) -> Document:
        parts: list[Part] = []
        for text, place in zip(row["texts"], row["places"], strict=True):
            parts += [text, Picture(self._all()[place]["image"])]
        return Document.of_parts(row["key"], parts)

    def _all(self) -> datasets.Dataset:
        if self._pictures is None:
            pictures: Any = self.drawings.load_encoded("all")
            self._pictures = pictures.with_format(None)
        return self._pictures

    def _story(self, key: str, names: list[str], groups: dict[str, list[int]]) -> tuple[list[str], list[int]]:
        """Return the texts of a story and the places of its emoji among `names`."""
        chance = random.Random(f"{self.config.seed}/{key}")
        topic = chance.choice(sorted(groups))
        most = min(self.config.max_pictures, len(groups[topic]))
        chosen = chance.sample(groups[topic], chance.randint(self.config.min_pictures, most))
        texts = [f"{topic.capitalize()}. {chance.choice(OPENINGS).format(name=names[chosen[0]])}"]
        texts += [chance.choice(CONTINUATIONS).format(name=names[place]) for place in chosen[1:]]
        return texts, chosen


def related(rows: datasets.Dataset, fewest: int) -> dict[str, list[int]]:
    """Return the places of the emoji of each subgroup, and of each word of their names, that has `fewest` or more."""
    groups: dict[str, list[int]] = {}
    for place, (key, caption) in enumerate(zip(rows["key"], rows["caption"], strict=True)):
        subgroup = group_and_subgroup(key)[1].replace("-", " ")
        words = [word for word in caption.lower().split() if len(word) >= SHORTEST_KEYWORD and word.isalpha()]
        for name in dict.fromkeys([subgroup, *words]):
            if name:
                groups.setdefault(name, []).append(place)
    return {name: places for name, places in groups.items() if len(places) >= fewest}
