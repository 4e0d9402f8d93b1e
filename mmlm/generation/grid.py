"""Several pictures with their captions on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from visual_tokenizer.errors import UserError

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
        raise UserError("images must hold one or more pictures, got none")
    if captions is not None and len(captions) != len(images):
        raise UserError(f"captions must be one for each of the {len(images)} pictures, got {len(captions)}")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    cell = max(128, *(max(image.size) for image in images)) if cell_size is None else cell_size
    if columns < 1 or cell < 1:
        raise UserError(f"columns and cell_size must be 1 or more, got {columns} and {cell}")
    font = ImageFont.load_default(size=FONT_SIZE)
    texts = [wrap(caption, cell, font) for caption in captions] if captions is not None else [[] for _ in images]
    line = math.ceil(sum(font.getmetrics())) if isinstance(font, ImageFont.FreeTypeFont) else FONT_SIZE
    fitted = [_fit(image.convert("RGB"), cell) for image in images]
    rows = [slice(start, start + columns) for start in range(0, len(images), columns)]
    picture_heights = [max(image.height for image in fitted[row]) for row in rows]
    text_heights = [line * max(len(text) for text in texts[row]) for row in rows]
    heights = [sum(pair) + 2 * MARGIN for pair in zip(picture_heights, text_heights, strict=True)]
    width = min(columns, len(images)) * (cell + MARGIN) + MARGIN
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, text) in enumerate(zip(fitted, texts, strict=True)):
        row, column = divmod(number, columns)
        left, top = MARGIN + column * (cell + MARGIN), MARGIN + sum(heights[:row])
        floor = top + picture_heights[row]
        sheet.paste(image, (left + (cell - image.width) // 2, floor - image.height))
        for place, words in enumerate(text):
            draw.text((left + cell / 2, floor + 4 + place * line), words, fill="black", font=font, anchor="ma")
    return sheet


def _fit(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


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
