"""Transforms are deterministic, geometric as documented, and exact at 8 bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from visual_tokenizer.data.transforms import (
    TransformConfig,
    bytes_to_pixels,
    flips,
    pixels_to_bytes,
    resize_and_crop,
    to_bytes,
    uniforms,
)


def gradient(width: int, height: int) -> Image.Image:
    """Red is the column, green the row."""
    rows, columns = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))


def test_uniforms_depend_on_every_argument_and_nothing_else() -> None:
    assert uniforms(1, 2, 3) == uniforms(1, 2, 3)
    assert len({uniforms(1, 2, 3), uniforms(0, 2, 3), uniforms(1, 0, 3), uniforms(1, 2, 0), uniforms(1, 23, 0)}) == 5
    values = np.array([uniforms(0, 0, index) for index in range(2000)])
    assert values.min() >= 0
    assert values.max() < 1
    assert np.abs(values.mean(axis=0) - 0.5).max() < 0.03


def test_center_crop_takes_the_middle() -> None:
    square = resize_and_crop(gradient(20, 10), 10, TransformConfig(), (0.0, 0.0, 0.0, 0.0))
    assert square.size == (10, 10)
    assert square.getpixel((0, 0))[:2] == (5, 0)
    assert square.getpixel((9, 9))[:2] == (14, 9)


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (3, 200), (64, 65)])
def test_any_size_fits(size: tuple[int, int]) -> None:
    for crop in ("center", "random"):
        config = TransformConfig(crop=crop, resize_filter="bilinear")
        assert resize_and_crop(Image.new("RGB", size), 16, config, uniforms(0, 0, 1)).size == (16, 16)


def test_random_crop_moves_within_the_picture() -> None:
    config = TransformConfig(crop="random", min_crop_fraction=1.0)
    corners = {resize_and_crop(gradient(20, 10), 10, config, uniforms(0, 0, i)).getpixel((0, 0)) for i in range(300)}
    assert corners == {(column, 0, 0) for column in range(11)}


def test_random_crop_zooms_down_to_the_smallest_fraction() -> None:
    config = TransformConfig(crop="random", min_crop_fraction=0.5, resize_filter="nearest")
    widths = set()
    for index in range(200):
        square = np.asarray(resize_and_crop(gradient(32, 32), 32, config, uniforms(0, 0, index)))
        widths.add(int(square[..., 0].max()) - int(square[..., 0].min()) + 1)
    assert min(widths) in (16, 17)
    assert max(widths) == 32


def test_half_of_the_samples_are_mirrored_only_if_asked() -> None:
    chances = [uniforms(0, 0, index) for index in range(1000)]
    assert not any(flips(TransformConfig(), chance) for chance in chances)
    assert 440 < sum(flips(TransformConfig(horizontal_flip=True), chance) for chance in chances) < 560


def test_all_bytes_survive_the_round_trip() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    pixels = bytes_to_pixels(values)
    assert (pixels.min().item(), pixels.max().item()) == (-1.0, 1.0)
    assert torch.equal(pixels_to_bytes(pixels), values)
    assert pixels_to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_channels_come_first() -> None:
    values = to_bytes(gradient(4, 3))
    assert values.shape == (3, 3, 4)
    assert values[:, 2, 3].tolist() == [3, 2, 0]


@pytest.mark.parametrize(
    ("field", "value"),
    [("resize_filter", "cubic"), ("crop", "middle"), ("min_crop_fraction", 0.0), ("min_crop_fraction", 1.5)],
)
def test_wrong_settings_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field} must be"):
        TransformConfig(**{field: value})
