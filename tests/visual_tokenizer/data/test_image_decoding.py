"""Every kind of odd or hostile picture is decoded correctly or refused by name."""

from __future__ import annotations

import io
import logging
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from encoded_pictures import bad_pictures, huge_png, picture_bytes
from PIL import Image

from visual_tokenizer.data.decoding import SkipReport, UnreadableImageError, decode_image, to_rgb
from visual_tokenizer.errors import UserError


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def test_all_forms_of_input_give_the_same_picture(tmp_path: Path) -> None:
    content = picture_bytes((10, 20, 30))
    file = tmp_path / "a.png"
    file.write_bytes(content)
    forms = [content, file, str(file), {"bytes": content, "path": None}, {"bytes": None, "path": str(file)}]
    for form in [*forms, Image.open(file)]:
        image = decode_image(form)
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (12, 8), (10, 20, 30))


@pytest.mark.parametrize("name", sorted(bad_pictures()))
def test_unreadable_content_is_refused_with_key_and_reason(name: str) -> None:
    with pytest.raises(UnreadableImageError, match=name) as caught:
        decode_image(bad_pictures()[name], key=name)
    assert caught.value.key == name
    assert caught.value.reason


def test_a_missing_file_is_unreadable(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="FileNotFoundError"):
        decode_image(tmp_path / "none.png", key="none")


def test_a_huge_picture_is_refused_before_any_memory_is_taken() -> None:
    content = huge_png(12_000, 12_000)
    decode_image(picture_bytes())  # loads the plugins
    tracemalloc.start()
    with pytest.raises(UnreadableImageError, match="max_pixels=50,000,000"):
        decode_image(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def test_max_pixels_is_the_exact_limit() -> None:
    content = picture_bytes(size=(12, 8))
    assert decode_image(content, max_pixels=96).size == (12, 8)
    with pytest.raises(UnreadableImageError, match="12 × 8 = 96 pixels is more than max_pixels=95"):
        decode_image(content, max_pixels=95)


def test_postscript_is_never_handed_to_another_program() -> None:
    content = encoded(Image.new("RGB", (8, 8)), "EPS")
    with pytest.raises(UnreadableImageError, match="not a picture in a known format"):
        decode_image(content)


def test_cmyk_becomes_rgb() -> None:
    image = decode_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = image.getpixel((8, 8))
    assert image.mode == "RGB"
    assert red > 240
    assert max(green, blue) < 20


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    image = decode_image(encoded(Image.fromarray(values), "PNG"))
    assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_float_pictures_are_refused() -> None:
    with pytest.raises(UnreadableImageError, match="mode F"):
        decode_image(encoded(Image.new("F", (4, 4), 0.5), "TIFF"))


def test_transparent_palette_is_blended_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([0, 1])
    decoded = decode_image(encoded(image, "PNG", transparency=0))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 0)) == (0, 0, 255)


@pytest.mark.parametrize(("mode", "color", "expected"), [("RGBA", (0, 0, 0, 51), 204), ("LA", (0, 51), 204)])
def test_half_transparency_is_blended_on_white(mode: str, color: tuple[int, ...], expected: int) -> None:
    assert to_rgb(Image.new(mode, (1, 1), color)).getpixel((0, 0)) == (expected,) * 3


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (8, 4), (0, 0, 255))
    exif = image.getexif()
    exif[0x0112] = 6
    assert decode_image(encoded(image, "JPEG", exif=exif)).size == (4, 8)


def test_animation_gives_the_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content).getpixel((0, 0)) == (255, 0, 0)


def test_the_error_survives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImageError("a.png", "cut")))
    assert (error.key, error.reason, str(error)) == ("a.png", "cut", "a.png: cut")


def test_report_logs_each_picture_once(caplog: pytest.LogCaptureFixture) -> None:
    report = SkipReport()
    with caplog.at_level(logging.WARNING, logger="visual_tokenizer.data.decoding"):
        for _ in range(3):
            report.readable()
            report.skip(UnreadableImageError("a.png", "cut"))
    assert [record.getMessage() for record in caplog.records] == ["skipped unreadable picture a.png: cut"]
    assert (report.tried, report.unreadable, report.reasons) == (6, 3, {"a.png": "cut"})


def test_report_aborts_above_the_fraction_and_only_after_twenty() -> None:
    report = SkipReport(max_unreadable_fraction=0.5)
    for number in range(19):
        report.skip(UnreadableImageError(f"{number}.png", "cut"))
    with pytest.raises(UserError, match=r"20 of 20 .* max_unreadable_fraction is 0.5"):
        report.skip(UnreadableImageError("19.png", "cut"))
    tolerant = SkipReport(max_unreadable_fraction=1.0)
    for number in range(40):
        tolerant.skip(UnreadableImageError(f"{number}.png", "cut"))
