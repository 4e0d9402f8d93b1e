"""Several pictures with their captions on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN = 8
FONT_SIZE = 13
MOST_LINES = 4


def image_grid(
    images: Sequence[Image.Image],
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    cell_size: int | None = None,
) -> Image.Image:
    """Return one RGB sheet of pictures in reading order, each with its caption beneath.

    Args:
        images: one or more pictures, of any sizes.
        captions: one for each picture, wrapped to its width and cut after four lines; None for none.
        columns: pictures side by side; by default the sheet is about square.
        cell_size: longer side of each picture on the sheet, in pixels; by default that of the largest, at least 128.
            Pictures are enlarged without smoothing.

    Raises:
        ValueError: no pictures, as many captions as pictures not given, or a size below 1.
    """
    if not images:
        raise ValueError("images must hold one or more pictures, got none")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"captions must be one for each of the {len(images)} pictures, got {len(captions)}")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    cell = max(128, *(max(image.size) for image in images)) if cell_size is None else cell_size
    if columns < 1 or cell < 1:
        raise ValueError(f"columns and cell_size must be 1 or more, got {columns} and {cell}")
    font = ImageFont.load_default(size=FONT_SIZE)
    texts = [wrap(caption, cell, font) for caption in captions] if captions is not None else [[] for _ in images]
    line = math.ceil(sum(font.getmetrics())) if isinstance(font, ImageFont.FreeTypeFont) else FONT_SIZE
    row_heights = [
        cell + line * max(len(text) for text in texts[start : start + columns]) + 2 * MARGIN
        for start in range(0, len(images), columns)
    ]
    width = min(columns, len(images)) * (cell + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, sum(row_heights) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        row, column = divmod(number, columns)
        left, top = MARGIN + column * (cell + MARGIN), MARGIN + sum(row_heights[:row])
        scale = cell / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        fitted = image.convert("RGB").resize(size, resample)
        sheet.paste(fitted, (left + (cell - size[0]) // 2, top + (cell - size[1]) // 2))
        for place, words in enumerate(text):
            draw.text((left + cell / 2, top + cell + 4 + place * line), words, fill="black", font=font, anchor="ma")
    return sheet


def wrap(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Return the lines, at most four, of `text` when it may be `width` pixels wide; "…" marks what is cut."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(_shorten(word, width, font))
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], _shorten(f"{lines[MOST_LINES - 1]}…", width, font)]
    return lines


def _shorten(word: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(word) <= width:
        return word
    while len(word) > 1 and font.getlength(f"{word}…") > width:
        word = word[:-1]
    return f"{word}…"
