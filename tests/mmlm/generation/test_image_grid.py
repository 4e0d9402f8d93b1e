from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from mmlm.generation.grid import MARGIN, image_grid, wrap


def test_pictures_stand_in_reading_order():
    colors = ["red", "lime", "blue"]
    sheet = image_grid([Image.new("RGB", (4, 4), color) for color in colors], columns=2, cell_size=20)
    assert sheet.size == (2 * 20 + 3 * MARGIN, 2 * (20 + 2 * MARGIN) + MARGIN)
    centres = [(18, 18), (18 + 28, 18), (18, 18 + 36)]
    assert [sheet.getpixel(centre) for centre in centres] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert sheet.getpixel((18 + 28, 18 + 36)) == (255, 255, 255)


def test_captions_are_drawn_beneath_their_picture():
    image = Image.new("RGB", (64, 64), "white")
    bare = image_grid([image], cell_size=128)
    told = image_grid([image], ["a red apple"], cell_size=128)
    assert told.height > bare.height
    ink = np.argwhere(np.asarray(told.convert("L")) < 128)
    assert ink[:, 0].min() >= MARGIN + 128
    assert abs(ink[:, 1].mean() - told.width / 2) < 6


def test_pictures_keep_their_shape():
    sheet = image_grid([Image.new("RGB", (40, 20), "red")], cell_size=40)
    red = np.argwhere((np.asarray(sheet) == (255, 0, 0)).all(-1))
    assert (np.ptp(red, axis=0) + 1).tolist() == [20, 40]


def test_long_captions_are_wrapped_and_cut():
    font = ImageFont.load_default(size=13)
    lines = wrap("word " * 200, 100, font)
    assert len(lines) == 4
    assert lines[-1].endswith("…")
    assert all(font.getlength(line) <= 100 for line in [*lines, *wrap("x" * 300, 100, font)])
    assert wrap("", 100, font) == []
    assert wrap("a red apple", 1000, font) == ["a red apple"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "one or more pictures"),
        (([Image.new("RGB", (1, 1))], ["a", "b"]), "one for each of the 1 pictures, got 2"),
        (([Image.new("RGB", (1, 1))], None, 0), "columns and cell_size must be 1 or more, got 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        image_grid(*arguments)
