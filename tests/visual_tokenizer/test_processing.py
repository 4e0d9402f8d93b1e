"""The image processor: geometry, exact round trip, saved settings, AutoImageProcessor, errors."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING, AutoImageProcessor
from transformers.utils import logging as transformers_logging

from visual_tokenizer.errors import UserError
from visual_tokenizer.processing import VisualTokenizerImageProcessor


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixel_values(processor: VisualTokenizerImageProcessor, images: Any, **options: Any) -> torch.Tensor:
    return processor(images, return_tensors="pt", **options)["pixel_values"]


def test_every_byte_survives_the_round_trip() -> None:
    processor = VisualTokenizerImageProcessor(size=16)
    images = [Image.fromarray(noise(16, 16)), Image.fromarray(255 - noise(16, 16))]
    pixels = pixel_values(processor, images)
    assert pixels.shape == (2, 3, 16, 16)
    assert pixels.dtype == torch.float32
    assert pixels.min() >= -1
    assert pixels.max() <= 1
    torch.testing.assert_close(pixels[0], torch.from_numpy(noise(16, 16)).permute(2, 0, 1) / 127.5 - 1)
    back = processor.postprocess(pixels)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(images, back, strict=True))


def test_postprocess_clamps_and_rounds_any_float_type() -> None:
    pixels = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0]).view(1, 1, 1, 5).expand(1, 3, 1, 5)
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        image = VisualTokenizerImageProcessor().postprocess(pixels.to(dtype))[0]
        assert [image.getpixel((x, 0))[0] for x in range(5)] == [0, 0, 128, 255, 255]


def test_the_shorter_side_is_resized_and_the_middle_kept() -> None:
    columns = np.broadcast_to((np.arange(80) * 3).astype(np.uint8)[None, :, None], (40, 80, 3))
    pixels = pixel_values(VisualTokenizerImageProcessor(size=20), Image.fromarray(columns.copy()))
    values = (pixels[0, 0, 10] + 1) * 127.5
    assert abs(values[0] - 3 * 20.5) < 3
    assert abs(values[-1] - 3 * 58.5) < 3


def test_a_size_of_height_and_width() -> None:
    processor = VisualTokenizerImageProcessor(size={"height": 8, "width": 24})
    assert pixel_values(processor, [Image.new("RGB", (9, 50)), Image.new("RGB", (50, 9))]).shape == (
        2,
        3,
        8,
        24,
    )
    assert pixel_values(processor, Image.new("RGB", (9, 9)), size=4).shape == (1, 3, 4, 4)
    assert pixel_values(processor, Image.new("RGB", (9, 9))).shape == (1, 3, 8, 24)


def test_without_crop_the_picture_is_stretched_and_without_resize_only_cropped() -> None:
    halves = np.zeros((8, 16, 3), dtype=np.uint8)
    halves[:, 8:] = 255
    stretched = pixel_values(VisualTokenizerImageProcessor(size=8, do_center_crop=False, resample=0), halves)
    assert stretched[0, 0, 0].tolist() == [-1.0] * 4 + [1.0] * 4
    cropped = pixel_values(VisualTokenizerImageProcessor(size=4, do_resize=False), noise(8, 8))
    torch.testing.assert_close(cropped[0], torch.from_numpy(noise(8, 8)[2:6, 2:6]).permute(2, 0, 1) / 127.5 - 1)
    with pytest.raises(UserError, match="8 × 8 cannot be cropped to 9 × 9"):
        VisualTokenizerImageProcessor(size=9, do_resize=False)(noise(8, 8))


def test_the_resample_filter_is_used() -> None:
    results = [pixel_values(VisualTokenizerImageProcessor(size=8, resample=r), noise(20, 20)) for r in range(6)]
    assert all(not torch.equal(results[i], results[j]) for i in range(6) for j in range(i))


def test_all_forms_of_input_agree(tmp_path: Path) -> None:
    processor = VisualTokenizerImageProcessor(size=8)
    array = noise(8, 8)
    file = tmp_path / "a.png"
    Image.fromarray(array).save(file)
    expected = pixel_values(processor, Image.fromarray(array))
    channels_first = torch.from_numpy(array).permute(2, 0, 1)
    for form in [
        array,
        channels_first,
        channels_first.numpy(),
        file,
        str(file),
        [array],
        [[array]],
        array[None],
    ]:
        assert torch.equal(pixel_values(processor, form), expected)


def test_transparency_is_blended_on_white_and_grey_is_spread() -> None:
    processor = VisualTokenizerImageProcessor(size=2)
    assert pixel_values(processor, Image.new("RGBA", (2, 2), (0, 0, 0, 0))).unique().tolist() == [1.0]
    assert pixel_values(processor, np.zeros((2, 2, 4), dtype=np.uint8)).unique().tolist() == [1.0]
    assert pixel_values(processor, np.zeros((2, 2), dtype=np.uint8)).shape == (1, 3, 2, 2)


def test_settings_survive_saving(tmp_path: Path) -> None:
    processor = VisualTokenizerImageProcessor(size={"height": 8, "width": 24}, resample=3, do_center_crop=False)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "VisualTokenizerImageProcessor"
    assert (saved["size"], saved["resample"], saved["do_center_crop"]) == (
        {"height": 8, "width": 24},
        3,
        False,
    )
    again = VisualTokenizerImageProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert torch.equal(pixel_values(again, noise(30, 20)), pixel_values(processor, noise(30, 20)))


class OrdinaryConfig(PreTrainedConfig):
    model_type = "ordinary_visual_tokenizer"


@pytest.fixture
def registered() -> Iterator[None]:
    AutoConfig.register("ordinary_visual_tokenizer", OrdinaryConfig, exist_ok=True)
    classes = {"pil": VisualTokenizerImageProcessor, "torchvision": VisualTokenizerImageProcessor}
    AutoImageProcessor.register(OrdinaryConfig, image_processor_classes=classes, exist_ok=True)
    yield
    IMAGE_PROCESSOR_MAPPING._extra_content.pop(OrdinaryConfig)


@pytest.mark.parametrize("options", [{}, {"backend": "pil"}, {"backend": "torchvision"}])
@pytest.mark.usefixtures("registered")
def test_auto_image_processor_finds_it_without_a_warning(
    tmp_path: Path, options: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    VisualTokenizerImageProcessor(size=12).save_pretrained(tmp_path)
    transformers_logging.enable_propagation()
    try:
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING, logger="transformers"):
            warnings.simplefilter("error")
            found = AutoImageProcessor.from_pretrained(tmp_path, **options)
    finally:
        transformers_logging.disable_propagation()
    assert type(found) is VisualTokenizerImageProcessor
    assert pixel_values(found, noise(30, 20)).shape == (1, 3, 12, 12)
    assert not caplog.records


@pytest.mark.parametrize("size", [0, -3, {"shortest_edge": 8}, {"height": 8, "width": 0}])
def test_wrong_sizes_are_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="size must be a positive int"):
        VisualTokenizerImageProcessor(size=size)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, "must be a Pillow image, a uint8 array or tensor, or a local file; got int"),
        (None, "got NoneType"),
        (np.zeros((4, 4, 3)), "must be uint8 in 0 … 255, got float64"),
        (np.zeros((0, 4, 3), dtype=np.uint8), r"1 px or more on each side, got shape \(0, 4, 3\)"),
        (np.zeros((5, 5, 2), dtype=np.uint8), r"got shape \(5, 5, 2\)"),
        (Image.new("RGB", (0, 5)), "the size is 0 × 5"),
        ("/no/such/file.png", "FileNotFoundError"),
        ("https://example.com/a.png", "FileNotFoundError"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        VisualTokenizerImageProcessor(size=4)([image])


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(3, 4, 4), r"must be a float tensor \(B, 3, H, W\)"),
        (torch.zeros(1, 4, 4, 3), r"must be a float tensor"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "got torch.uint8"),
        (torch.full((1, 3, 2, 2), float("nan")), "NaN"),
    ],
)
def test_what_are_no_pixels_is_refused(pixels: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        VisualTokenizerImageProcessor().postprocess(pixels)
