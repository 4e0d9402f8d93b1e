"""Text fidelity: the counts by hand with a made-up reader, the edit distance by recursion, the real reader if there."""

from __future__ import annotations

import functools
import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.metrics._text import edit_distance
from visual_tokenizer.metrics.text_fidelity import TextFidelity, TextFidelityConfig


def recursive_distance(first: str, second: str) -> int:
    @functools.cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        substituted = distance(i - 1, j - 1) + (first[i - 1] != second[j - 1])
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, substituted)

    return distance(len(first), len(second))


def test_edit_distance_equals_its_recursion() -> None:
    draws = random.Random(0)
    assert edit_distance("kitten", "sitting") == 3
    for _ in range(100):
        first, second = ("".join(draws.choices("abc", k=draws.randrange(7))) for _ in range(2))
        assert edit_distance(first, second) == recursive_distance(first, second)


class Scripted:
    """Reads what the test says: the red level of a picture names it."""

    name = "scripted"
    texts = {0: ["Amber lantern", "river"], 1: ["amber Lantern", "rivet"], 2: [], 3: ["xyz", ""]}  # noqa: RUF012

    def find(self, picture: np.ndarray) -> list[np.ndarray]:
        return [np.zeros((4, 2))] * len(self.texts[int(picture[0, 0, 0])])

    def read(self, picture: np.ndarray, regions: list[np.ndarray]) -> list[str]:
        return self.texts[int(picture[0, 0, 0])][: len(regions)]


def named(*names: int) -> Tensor:
    return torch.stack([torch.full((3, 2, 2), name / 127.5 - 1) for name in names])


def test_counts_by_hand() -> None:
    metric = TextFidelity(reader=Scripted())
    metric.observe(named(0, 2, 0), named(1, 0, 3), torch.empty(0))
    # amberlantern is read alike; river / rivet is 1 edit of 5; amberlantern / xyz 12 of 12; river / "" 5 of 5.
    assert metric.compute() == {
        "text_accuracy": 1 / 4,
        "text_normalized_edit_distance": pytest.approx((0 + 1 / 5 + 1 + 1) / 4),
        "text_character_error_rate": pytest.approx((0 + 1 + 12 + 5) / (12 + 5 + 12 + 5)),
        "text_regions": 4,
    }


def test_pictures_without_text_are_no_data() -> None:
    metric = TextFidelity(reader=Scripted())
    metric.observe(named(2), named(0), torch.empty(0))
    with pytest.raises(UserError, match="no text was found"):
        metric.compute()
    with pytest.raises(ValueError, match="min_score must be in"):
        TextFidelityConfig(min_score=2)


def test_blur_destroys_rendered_text() -> None:
    """The real reader on the built-in pictures: all read in the original, less and less the coarser the copy."""
    pytest.importorskip("rapidocr_onnxruntime")
    rows = SourceConfig.family.build({"type": "rendered_text", "pictures": 1}).load("heldout")
    pixels = torch.from_numpy(np.array(rows[0]["image"])).permute(2, 0, 1)[None].float() / 127.5 - 1
    found = []
    for scale in (1.0, 0.35, 0.2):
        small = F.interpolate(pixels, scale_factor=scale, mode="bilinear", antialias=True)
        metric = TextFidelity()
        metric.observe(pixels, F.interpolate(small, pixels.shape[-2:], mode="bilinear"), torch.empty(0))
        found.append(metric.compute())
    assert found[0]["text_regions"] >= 4
    assert found[0]["text_accuracy"] == 1
    assert [result["text_accuracy"] for result in found] == sorted((r["text_accuracy"] for r in found), reverse=True)
    assert found[0]["text_character_error_rate"] == 0 < found[1]["text_character_error_rate"]
    assert found[2]["text_normalized_edit_distance"] > 0.3
