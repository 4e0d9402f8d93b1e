"""Small pictures, good and bad."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def picture_bytes(
    color: tuple[int, int, int] = (255, 0, 0), size: tuple[int, int] = (12, 8), kind: str = "PNG"
) -> bytes:
    """Return an encoded picture of one colour; size is (width, height)."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format=kind)
    return buffer.getvalue()


def huge_png(width: int = 20_000, height: int = 20_000) -> bytes:
    """Return a PNG of a few bytes whose header declares `width` × `height`."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def truncated_jpeg() -> bytes:
    """Return the first half of a JPEG of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


def bad_pictures() -> dict[str, bytes]:
    """Return unreadable contents by file name."""
    return {
        "cut.jpg": truncated_jpeg(),
        "empty.png": b"",
        "text.png": b"this is no picture",
        "huge.png": huge_png(),
    }
