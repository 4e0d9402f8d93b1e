"""Videos of every kind, good and bad: which frames a clip holds, and what is skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visual_tokenizer.data import video_decoding
from visual_tokenizer.data.batches import DataSection, PictureSet
from visual_tokenizer.data.decoding import UnreadableImageError
from visual_tokenizer.data.loading import PixelDataset
from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig
from visual_tokenizer.data.transforms import TransformConfig
from visual_tokenizer.data.video_decoding import MissingVideoDecoderError, decode_clip, wanted_frames


def shades(count: int) -> list[Image.Image]:
    """Frames whose red is 10 times their number."""
    return [Image.new("RGB", (16, 12), (10 * number, 0, 0)) for number in range(count)]


def write_gif(file: Path, count: int) -> None:
    # Without its own palette a GIF rounds colours.
    first, *rest = [frame.quantize(32) for frame in shades(count)]
    first.save(file, save_all=True, append_images=rest, duration=40, optimize=False)


def write_frames(folder: Path, count: int) -> None:
    folder.mkdir()
    for number, frame in enumerate(shades(count)):
        frame.save(folder / f"frame_{number}.png")  # 10 comes after 9


def write_container(file: Path, count: int) -> None:
    av = pytest.importorskip("av")
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libvpx" if file.suffix == ".webm" else "mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 12, "yuv420p"
        stream.codec_context.gop_size = 5
        stream.bit_rate = 2_000_000
        for frame in shades(count):
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def numbers(clip: list[Image.Image]) -> list[int]:
    return [round(float(np.asarray(frame)[..., 0].mean()) / 10) for frame in clip]


def build(folder: Path, **fields: Any) -> Source:
    return SourceConfig.family.build({"type": "video_folder", "folder": str(folder), "num_frames": 3, **fields})


def test_which_frames_are_wanted():
    assert list(wanted_frames(10, 3, 2, 0.0)) == [0, 2, 4]
    assert list(wanted_frames(10, 3, 2, 0.999)) == [5, 7, 9]
    assert list(wanted_frames(5, 3, 2, 0.5)) == [0, 2, 4]
    with pytest.raises(ValueError, match="4 frames are too few for 3 frames at stride 2, which take 5"):
        wanted_frames(4, 3, 2, 0.0)


@pytest.mark.parametrize("kind", ["folder", ".gif", ".mp4", ".webm"])
@pytest.mark.parametrize(("place", "expected"), [(0.0, [0, 2, 4]), (0.5, [4, 6, 8]), (0.99, [7, 9, 11])])
def test_a_clip_holds_the_frames_from_its_place_on(tmp_path, kind, place, expected):
    path = tmp_path / f"video{'' if kind == 'folder' else kind}"
    write = {"folder": write_frames, ".gif": write_gif}.get(kind, write_container)
    write(path, 12)
    clip = decode_clip(path, frames=3, stride=2, place=place, max_pixels=1000)
    assert numbers(clip) == expected
    assert {(frame.mode, frame.size) for frame in clip} == {("RGB", (16, 12))}
    with pytest.raises(UnreadableImageError, match="max_pixels=100"):
        decode_clip(path, frames=3, stride=2, place=place, max_pixels=100, key="video")


def test_folders_and_captions(tmp_path):
    (tmp_path / "sub").mkdir()
    write_gif(tmp_path / "sub" / "a.gif", 4)
    write_frames(tmp_path / "b", 4)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "sub/a.gif", "caption": "turns red"}))
    rows = build(tmp_path).load("all")
    assert [(row["key"], row["caption"], len(row["clip"])) for row in rows] == [
        ("b", "", 3),
        ("sub/a.gif", "turns red", 3),
    ]
    with pytest.raises(DataSourceError, match="no video below"):
        build(tmp_path / "b").load("all")
    with pytest.raises(DataSourceError, match="there is no folder"):
        build(tmp_path / "c").load("all")


def test_bad_and_short_videos_are_replaced_counted_and_named(tmp_path):
    for name in ("a.gif", "d.gif"):
        write_gif(tmp_path / name, 6)
    (tmp_path / "b.gif").write_bytes(b"GIF89a, but no more")
    write_gif(tmp_path / "c.gif", 2)
    source = build(tmp_path)
    rows = source.load("all")
    assert [row["key"] for row in rows] == ["a.gif", "d.gif", "d.gif", "d.gif"]
    assert set(source.report.reasons) == {"b.gif", "c.gif"}
    assert "2 frames are too few for 3" in source.report.reasons["c.gif"]


def test_training_clips_start_anywhere_and_evaluated_ones_in_the_middle(tmp_path):
    for name in ("a.gif", "b.gif"):
        write_gif(tmp_path / name, 20)
    (tmp_path / "aa.gif").write_bytes(b"")  # replaced by b, from the same place on
    source = build(tmp_path, heldout_fraction=0)
    rows = source.load("all")
    data = PixelDataset(rows, 12, TransformConfig(), seed=3)
    assert data.table is None

    def starts(epoch: int, number: int) -> int:
        pixels = data[(epoch, number)]["pixels"]
        assert pixels.shape == (3, 3, 12, 12)
        return round(float((pixels[0, 0].mean() + 1) * 12.75))

    drawn = [[starts(epoch, number) for number in range(3)] for epoch in range(12)]
    assert drawn == [[starts(epoch, number) for number in range(3)] for epoch in range(12)]
    assert len({first for first, *_ in drawn}) > 5
    assert {start for row in drawn for start in row} <= set(range(18))
    assert len({tuple(row) for row in drawn}) > 10
    evaluated = PictureSet(source, "all", DataSection(source=source.config), image_size=12, max_pictures=None)
    assert evaluated.pictures.table is not None
    pixels = next(evaluated.batches(3))["pixels"]
    assert pixels.shape == (3, 3, 3, 12, 12)
    assert ((pixels[:, 0, :, 0, 0] + 1) * 12.75).round().tolist() == [[9.0, 10.0, 11.0]] * 3


def test_a_container_without_its_decoder_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingVideoDecoderError, match="install the extra 'video'"):
        build(tmp_path).load("all")[0]
    assert video_decoding.CONTAINERS >= {".mp4", ".webm", ".mov"}


def test_a_cut_container_is_skipped(tmp_path):
    write_container(tmp_path / "a.mp4", 12)
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(content[: len(content) // 3])
    source = build(tmp_path)
    assert [row["key"] for row in source.load("all")] == ["a.mp4", "a.mp4"]
    assert set(source.report.reasons) == {"b.mp4"}
