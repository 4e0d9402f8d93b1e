"""Picture or clip → pixels: resize, crop, flip. Every random choice is a pure function of (seed, epoch, index)."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Interval
from PIL import Image
from torch import Tensor

from visual_tokenizer.fields.ranges import Section

RESIZE_FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
    "nearest": Image.Resampling.NEAREST,
}


@dataclass(kw_only=True)
class TransformConfig(Section):
    """How a picture, or each frame of a clip alike, becomes a square of pixels."""

    resize_filter: Literal["lanczos", "bicubic", "bilinear", "box", "nearest"] = "lanczos"
    """Pillow's filter, antialiased."""
    crop: Literal["center", "random"] = "center"
    """center: the middle square; random: a square at a random place and scale (ADM's `random_crop_arr`)."""
    min_crop_fraction: Annotated[float, Interval(gt=0, le=1)] = 0.8
    """Smallest side of a random crop as a share of the picture's shorter side; 1: only moved."""
    horizontal_flip: bool = False
    """Mirror half of the pictures; wrong for text."""
    clip_start: Literal["center", "random"] = "random"
    """Which stretch of a longer video is a clip: random: another each epoch; center: the middle one."""


def uniforms(seed: int, epoch: int, index: int) -> tuple[float, float, float, float]:
    """Return four numbers in [0, 1) that depend on nothing but the arguments."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{index}".encode(), digest_size=32).digest()
    first, second, third, fourth = struct.unpack("<4Q", digest)
    return (first >> 11) * 2.0**-53, (second >> 11) * 2.0**-53, (third >> 11) * 2.0**-53, (fourth >> 11) * 2.0**-53


def clip_place(config: TransformConfig, seed: int, epoch: int, index: int) -> float:
    """Return where in its video a clip starts: 0 as early, towards 1 as late as there are frames for it; in [0, 1)."""
    if config.clip_start == "center":
        return 0.5
    digest = hashlib.blake2b(f"clip/{seed}/{epoch}/{index}".encode(), digest_size=7).digest()
    return (int.from_bytes(digest, "little") >> 3) * 2.0**-53


def resize_to_cover(image: Image.Image, height: int, width: int, resample: Image.Resampling) -> Image.Image:
    """Resize with the aspect ratio kept, so that the picture just covers `height` × `width`."""
    scale = max(height / image.height, width / image.width)
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    return image if image.size == size else image.resize(size, resample)


def center_crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """Cut out the middle `height` × `width`."""
    if image.size == (width, height):
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def resize_and_crop(
    image: Image.Image, image_size: int, config: TransformConfig, chance: tuple[float, float, float, float]
) -> Image.Image:
    """Return an `image_size` × `image_size` square of an RGB picture; `chance` is what `uniforms` returns."""
    resample = RESIZE_FILTERS[config.resize_filter]
    if config.crop == "center":
        return center_crop(resize_to_cover(image, image_size, image_size, resample), image_size, image_size)
    _, scale, right, down = chance
    largest = int(image_size / config.min_crop_fraction)
    side = image_size + int(scale * (largest - image_size + 1))
    image = resize_to_cover(image, side, side, resample)
    left, top = (int(right * (image.width - image_size + 1)), int(down * (image.height - image_size + 1)))
    return image.crop((left, top, left + image_size, top + image_size))


def flips(config: TransformConfig, chance: tuple[float, float, float, float]) -> bool:
    """Whether this sample is mirrored."""
    return config.horizontal_flip and chance[0] < 0.5


def to_bytes(image: Image.Image) -> Tensor:
    """RGB picture → uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


def square_bytes(
    content: Image.Image | list[Image.Image],
    image_size: int,
    config: TransformConfig,
    chance: tuple[float, float, float, float],
) -> Tensor:
    """Return the square of a picture, uint8 (3, H, W), or of all frames of a clip alike, (3, T, H, W); not flipped."""
    if isinstance(content, list):
        return torch.stack([square_bytes(frame, image_size, config, chance) for frame in content], dim=1)
    return to_bytes(resize_and_crop(content, image_size, config, chance))


def bytes_to_pixels(values: Tensor) -> Tensor:
    """uint8 of any shape → float32 in [-1, 1]."""
    return values.to(torch.float32).div_(127.5).sub_(1.0)


def pixels_to_bytes(pixels: Tensor) -> Tensor:
    """Float of any shape in [-1, 1] → uint8, clamped and rounded to the nearest."""
    return pixels.detach().to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
