"""Encoded video → a few of its frames as 8-bit RGB, safely: no frame is decoded before its size is known to be allowed.

Animated GIF and WebP and folders of numbered pictures need nothing more; MP4, WebM and the like need PyAV, the extra
`video`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from visual_tokenizer.data.decoding import UnreadableImageError, decode_image, to_rgb
from visual_tokenizer.data.sources.base import DataSourceError
from visual_tokenizer.errors import UserError

ANIMATIONS = frozenset({".gif", ".webp"})
CONTAINERS = frozenset({".mp4", ".m4v", ".webm", ".mov", ".mkv", ".avi"})
FRAME_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm"})


class MissingVideoDecoderError(DataSourceError):
    """A container is to be read, and PyAV is not installed."""


def decode_clip(
    path: Path, *, frames: int, stride: int, place: float, max_pixels: int, key: str = "video"
) -> list[Image.Image]:
    """Return `frames` frames, `stride` apart, RGB.

    Args:
        path: a container, an animated picture or a folder of numbered pictures.
        frames: how many.
        stride: every how many frames of the video one is taken.
        place: 0 takes the earliest such frames, towards 1 the latest.
        max_pixels: largest allowed width × height.
        key: name of the video in the error.

    Raises:
        UnreadableImageError: not a video, damaged, too large, or too short.
        MissingVideoDecoderError: a container, and PyAV is not installed.
    """
    read = _from_folder if path.is_dir() else _from_animation if path.suffix.lower() in ANIMATIONS else _from_container
    try:
        clip = read(path, frames, stride, place, max_pixels)
    except (UnreadableImageError, MissingVideoDecoderError):
        raise
    except Exception as error:  # decoders raise almost any type on a damaged or hostile file
        raise UnreadableImageError(key, f"{type(error).__name__}: {error}") from error
    if len(clip) != frames:
        raise UnreadableImageError(key, f"only {len(clip)} of the {frames} frames wanted could be decoded")
    return clip


def wanted_frames(total: int, frames: int, stride: int, place: float) -> range:
    """Return the numbers of the frames to take of a video of `total`.

    Raises:
        ValueError: the video is too short.
    """
    span = (frames - 1) * stride + 1
    if total < span:
        raise UserError(f"{total} frames are too few for {frames} frames at stride {stride}, which take {span}")
    first = int(place * (total - span + 1))
    return range(first, first + span, stride)


def is_frame_folder(folder: Path) -> bool:
    """Whether the folder holds pictures and each is named by a number, such as `0001.png` or `frame_12.jpg`."""
    pictures = [file for file in folder.iterdir() if file.suffix.lower() in FRAME_PICTURES]
    return bool(pictures) and all(_number(file) is not None for file in pictures)


def _number(file: Path) -> int | None:
    found = re.search(r"(\d+)$", file.stem)
    return int(found.group(1)) if found else None


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1 or width * height > max_pixels:
        raise UserError(f"frames of {width} × {height} are not within 1 … max_pixels={max_pixels:,} pixels")


def _from_folder(path: Path, frames: int, stride: int, place: float, max_pixels: int) -> list[Image.Image]:
    files = sorted(
        (file for file in path.iterdir() if file.suffix.lower() in FRAME_PICTURES),
        key=lambda file: (_number(file) or 0, file.name),
    )
    chosen = [files[number] for number in wanted_frames(len(files), frames, stride, place)]
    clip = [decode_image(file, key=file.name, max_pixels=max_pixels) for file in chosen]
    if len({picture.size for picture in clip}) > 1:
        raise UserError(f"the frames differ in size: {sorted({picture.size for picture in clip})}")
    return clip


def _from_animation(path: Path, frames: int, stride: int, place: float, max_pixels: int) -> list[Image.Image]:
    with Image.open(path, formats=["GIF", "WEBP"]) as animation:
        width, height = animation.size
        _check_size(width, height, max_pixels)
        total = getattr(animation, "n_frames", 1)
        chosen = wanted_frames(total, frames, stride, place)
        clip = []
        for number, frame in enumerate(ImageSequence.Iterator(animation)):
            if number in chosen:
                clip.append(to_rgb(frame.copy()))
            if number >= chosen[-1]:
                break
        return clip


def _from_container(path: Path, frames: int, stride: int, place: float, max_pixels: int) -> list[Image.Image]:
    try:
        import av
    except ImportError as error:
        raise MissingVideoDecoderError(
            f"{path.name}: PyAV is needed for {path.suffix} files: install the extra 'video' (or the package av)"
        ) from error
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        _check_size(stream.codec_context.width, stream.codec_context.height, max_pixels)
        # In order of display; counted by packets, which costs no decoding, since headers often say 0 or are wrong.
        times = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
        chosen = [times[number] for number in wanted_frames(len(times), frames, stride, place)]
        container.seek(chosen[0], stream=stream, backward=True)
        return list(_frames_at(container.decode(stream), set(chosen), max_pixels))


def _frames_at(decoded: Any, times: set[int], max_pixels: int) -> Iterator[Image.Image]:
    last = max(times)
    for frame in decoded:
        if frame.pts in times:
            _check_size(frame.width, frame.height, max_pixels)
            yield frame.to_image().convert("RGB")
        if frame.pts is not None and frame.pts >= last:
            return
