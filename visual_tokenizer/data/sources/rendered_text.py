"""Pictures of printed words, small to large, drawn when they are asked for: what text fidelity is measured on."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass, field
from typing import Annotated

import datasets
from annotated_types import Ge, Interval, Len
from PIL import Image, ImageDraw, ImageFont, features

from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig

WORDS = (
    "amber anchor apple autumn bakery balance basket beacon bicycle blanket blossom bottle branch breeze bridge "
    "bronze bucket butter button cabin camera candle canvas carpet castle cedar chapter cherry circle clover coffee "
    "compass copper corner cotton cradle crystal curtain dancer desert diamond dinner dragon eagle echo emerald "
    "engine evening fabric falcon feather fiddle finger forest fountain garden ginger glacier golden granite guitar "
    "hammer harbor harvest helmet hollow honey horizon island ivory jacket jungle kettle kitchen ladder lantern "
    "leather lemon library magnet maple marble market meadow melody mirror monkey morning mountain needle nickel "
    "night number ocean office olive orange orchard oyster paddle palace paper parrot pencil pepper piano pillow "
    "planet pocket purple puzzle quarter rabbit railway ribbon river rocket saddle sailor salmon sample season shadow "
    "silver simple singer spider spring station stone summer sunset temple thunder ticket timber tunnel turtle valley "
    "velvet village violet walnut water weather window winter wonder yellow zebra"
).split()

INKS = ((0, 0, 0), (20, 30, 90), (110, 20, 20), (20, 80, 40))
PAPERS = ((255, 255, 255), (250, 244, 226), (226, 238, 250))


@dataclass(kw_only=True)
class RenderedTextConfig(SourceConfig):
    """Words in the font that comes with Pillow; `heldout_fraction` is unused, since there is a held-out set."""

    resolution: Annotated[int, Interval(ge=64, le=4096)] = 256
    """Side of the square pictures in pixels."""
    font_sizes: Annotated[list[Annotated[int, Ge(6)]], Len(1)] = field(default_factory=lambda: [10, 14, 20, 28, 40])
    """Sizes of the lines in pixels, from the top down; as many as fit are drawn."""
    pictures: Annotated[int, Ge(1)] = 64
    """Pictures of the training set, and of the held-out set."""
    seed: Annotated[int, Ge(0)] = 0
    """Seed of words, places and colours."""


class RenderedText(Source):
    """One or two words a line, one line a font size; `caption` is the lines joined by spaces."""

    Config = RenderedTextConfig

    @property
    def has_own_heldout(self) -> bool:
        """The held-out pictures are others, of the same number."""
        return True

    def read(self, part: str) -> datasets.Dataset:
        """Return the encoded rows of "main" or "heldout", the same at every call.

        Raises:
            DataSourceError: Pillow was built without FreeType, or no line fits.
        """
        if not features.check("freetype2"):
            raise DataSourceError("rendered_text needs a Pillow with FreeType, by which its font is drawn")
        rows = [self._draw(f"{part}-{number:05d}") for number in range(self.config.pictures)]
        columns = datasets.Features(
            {
                "image": datasets.Image(decode=False),
                "caption": datasets.Value("string"),
                "key": datasets.Value("string"),
            }
        )
        return datasets.Dataset.from_list(rows, features=columns)

    def _draw(self, key: str) -> dict:
        config = self.config
        draws = random.Random(f"{config.seed}/{key}")
        side = config.resolution
        picture = Image.new("RGB", (side, side), draws.choice(PAPERS))
        canvas = ImageDraw.Draw(picture)
        margin = max(2, side // 32)
        top, lines = margin, []
        for size in config.font_sizes:
            font = ImageFont.load_default(size)
            # Room for one or two words; a line never leaves the picture.
            words = draws.sample(WORDS, 2)
            fitting = [
                text
                for text in (" ".join(words), words[0], min(WORDS, key=len))
                if _width(font, text) <= side - 2 * margin
            ]
            if not fitting or top + 1.3 * size > side - margin:
                break
            text = fitting[0]
            left = draws.uniform(margin, side - margin - _width(font, text))
            canvas.text((left, top), text, font=font, fill=draws.choice(INKS))
            lines.append(text)
            top += round(1.6 * size)
        if not lines:
            raise DataSourceError(f"font_sizes: no word of {config.font_sizes[0]} px fits into {side} px")
        encoded = io.BytesIO()
        picture.save(encoded, format="PNG")
        return {"image": {"bytes": encoded.getvalue(), "path": f"{key}.png"}, "caption": " ".join(lines), "key": key}


def _width(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str) -> float:
    return font.getlength(text)
