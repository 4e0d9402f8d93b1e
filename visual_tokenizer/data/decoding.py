"""Encoded picture → 8-bit RGB, safely: nothing is decoded before its declared size is known to be allowed."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from visual_tokenizer.errors import UserError

logger = logging.getLogger(__name__)

DEFAULT_MAX_PIXELS = 50_000_000
"""Largest width × height that is decoded; 150 MB as 8-bit RGB."""

LARGEST_MAX_PIXELS = 178_956_970
"""Pillow refuses anything larger by itself, so `max_pixels` cannot be set above it."""

SAMPLES_BEFORE_ABORT = 20
"""The share of unreadable pictures is not judged before this many were tried."""

# An allow-list: Pillow also opens formats that start other programs (EPS runs Ghostscript) or need plugins.
RASTER_FORMATS = (
    "PNG",
    "JPEG",
    "MPO",
    "WEBP",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "PPM",
    "ICO",
    "JPEG2000",
    "AVIF",
    "TGA",
)

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class UnreadableImageError(UserError):
    """A picture cannot be decoded, or may not be; `key` names it, `reason` says why."""

    def __init__(self, key: str, reason: str = "") -> None:
        super().__init__(key, reason)
        self.key = key
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}" if self.reason else self.key


def decode_image(
    data: bytes | str | Path | Image.Image | Mapping[str, Any],
    *,
    key: str = "image",
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Image.Image:
    """Return the first frame as 8-bit RGB, upright by its EXIF tag, transparency blended on white.

    Args:
        data: encoded bytes, a file, a Pillow image, or the `{"bytes", "path"}` that `datasets` stores.
        key: name of the picture in the error.
        max_pixels: largest allowed width × height, checked on the header, before anything is decoded.

    Raises:
        UnreadableImageError: not a picture, cut off, damaged, empty, or above `max_pixels`.
    """
    with warnings.catch_warnings():
        # Pillow warns about odd but readable files (damaged EXIF, large sizes); what matters is raised below.
        warnings.simplefilter("ignore")
        try:
            image = _open(data)
            width, height = image.size
            if width < 1 or height < 1:
                raise UnreadableImageError(key, f"the size is {width} × {height}, and each side must be 1 px or more")
            if width * height > max_pixels:
                raise UnreadableImageError(
                    key,
                    f"{width} × {height} = {width * height:,} pixels is more than max_pixels={max_pixels:,}",
                )
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
        except UnreadableImageError:
            raise
        except UnidentifiedImageError as error:
            raise UnreadableImageError(key, "not a picture in a known format") from error
        except Image.DecompressionBombError as error:  # Pillow's own limit, which is never below max_pixels
            raise UnreadableImageError(key, f"{error}; max_pixels={max_pixels:,}") from error
        except Exception as error:  # Pillow's decoders raise almost any type on a damaged or hostile file
            raise UnreadableImageError(key, f"{type(error).__name__}: {error}") from error


def _open(data: bytes | str | Path | Image.Image | Mapping[str, Any]) -> Image.Image:
    if isinstance(data, Image.Image):
        return data
    stored: Any = data
    if isinstance(data, Mapping):
        stored = data["bytes"] if data.get("bytes") is not None else data.get("path")
    if stored is None:
        raise UserError("neither bytes nor a path are given")
    content = Path(stored).read_bytes() if isinstance(stored, (str, Path)) else stored
    if len(content) == 0:
        raise UserError("the file is empty")
    Image.init()
    return Image.open(io.BytesIO(content), formats=[name for name in RASTER_FORMATS if name in Image.OPEN])


def to_rgb(image: Image.Image) -> Image.Image:
    """Return 8-bit RGB; transparency is blended on white, 16-bit grey is scaled to 8 bits.

    Raises:
        ValueError: a mode without a defined range of brightness (float) or without a conversion.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in _SIXTEEN_BIT_MODES:
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8), mode=None).convert("RGB")
    if image.mode == "F":
        raise UserError("a float picture (mode F) has no defined range of brightness")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


class SkipReport:
    """Counts the pictures tried and those that were unreadable, and stops a run whose data is mostly broken.

    Each process (rank or loader worker) has its own counts. A picture is logged once, with its reason.

    Args:
        max_unreadable_fraction: abort above this share of unreadable pictures, judged from the 20th try on.
    """

    def __init__(self, max_unreadable_fraction: float = 0.5) -> None:
        self.max_unreadable_fraction = max_unreadable_fraction
        self.tried = 0
        self.unreadable = 0
        self.reasons: dict[str, str] = {}
        """Reason by key of each unreadable picture met so far."""

    def readable(self) -> None:
        """Count a picture that was decoded."""
        self.tried += 1

    def skip(self, error: UnreadableImageError) -> None:
        """Count and log an unreadable picture.

        Raises:
            UserError: their share passes `max_unreadable_fraction`.
        """
        self.tried += 1
        self.unreadable += 1
        if error.key not in self.reasons:
            self.reasons[error.key] = error.reason
            logger.warning("skipped unreadable picture %s: %s", error.key, error.reason)
        share = self.unreadable / self.tried
        if self.tried >= SAMPLES_BEFORE_ABORT and share > self.max_unreadable_fraction:
            raise UserError(
                f"{self.unreadable} of {self.tried} pictures are unreadable, "
                f"max_unreadable_fraction is {self.max_unreadable_fraction}; the last is {error}"
            )
