"""The pictures of words: the same at every call, all letters inside, the held-out words others."""

from __future__ import annotations

import numpy as np
import pytest

from visual_tokenizer.data.sources.base import DataSourceError, SourceConfig
from visual_tokenizer.data.sources.rendered_text import PAPERS, WORDS


def rows(split: str = "train", **fields: object):
    return SourceConfig.family.build({"type": "rendered_text", "pictures": 4, **fields}).load(split)


def test_the_same_pictures_at_every_call_and_others_for_another_seed() -> None:
    first, second, other = rows(), rows(), rows(seed=1)
    for row in range(4):
        assert first[row]["image"].tobytes() == second[row]["image"].tobytes()
        assert first[row]["caption"] == second[row]["caption"] != other[row]["caption"]
        assert set(first[row]["caption"].split()) <= set(WORDS)


def test_the_heldout_pictures_are_others_of_the_same_number() -> None:
    train, heldout, both = rows(), rows("heldout"), rows("all")
    assert (len(train), len(heldout), len(both)) == (4, 4, 8)
    assert not {train[row]["caption"] for row in range(4)} & {heldout[row]["caption"] for row in range(4)}


def test_lines_grow_and_stay_inside() -> None:
    for row in range(4):
        picture = np.array(rows(font_sizes=[12, 24, 48])[row]["image"]).astype(int)
        assert picture.shape == (256, 256, 3)
        paper = picture[0, 0]
        assert tuple(paper) in PAPERS
        ink = np.abs(picture - paper).sum(2) > 60
        assert not ink[:2].any()
        assert not ink[-2:].any()
        assert not ink[:, :2].any()
        assert not ink[:, -2:].any()
        # Lines begin at 8, and each is 1.6 of its size below the one before.
        heights = []
        for top, size in ((8, 12), (27, 24), (65, 48)):
            places = np.flatnonzero(ink[top : top + round(1.5 * size)].any(1))
            heights.append(places[-1] - places[0] + 1)
            assert 0.5 * size < heights[-1] < 1.2 * size
            ink[top : top + round(1.5 * size)] = False
        assert not ink.any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resolution": 32}, r"resolution must be in \[64, 4096\], got 32"),
        ({"font_sizes": []}, "font_sizes must hold 1 or more"),
        ({"font_sizes": [4]}, r"font_sizes\[0\] must be 6 or more, got 4"),
        ({"pictures": 0}, "pictures must be 1 or more"),
    ],
)
def test_fields_are_checked(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows(**fields)


def test_a_size_that_does_not_fit_is_named() -> None:
    with pytest.raises(DataSourceError, match="no word of 200 px fits into 64 px"):
        rows(resolution=64, font_sizes=[200])
