"""Pictures in requests and answers: base64 and `data:` addresses."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings

from PIL import Image, ImageOps

from mmlm.serve.errors import RequestError
from mmlm.serve.limits import Limits

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
DATA_ADDRESS = re.compile(r"data:image/[a-z0-9.+-]+;base64,", flags=re.ASCII | re.IGNORECASE)


def read_picture(address: str, limits: Limits, param: str) -> Image.Image:
    """Return the picture of a `data:image/…;base64,` address, upright; nothing is fetched from anywhere.

    Raises:
        RequestError: another kind of address, too large, or no picture.
    """
    match = DATA_ADDRESS.match(address)
    if match is None:
        raise RequestError("a picture must be a data:image/...;base64,... address: nothing is fetched", param=param)
    if len(address) - match.end() > limits.image_bytes * 4 // 3 + 4:
        raise RequestError(f"a picture may have at most {limits.image_bytes} bytes", param=param, status=413)
    try:
        content = base64.b64decode(address[match.end() :], validate=True)
    except binascii.Error as error:
        raise RequestError(f"the picture is not base64: {error}", param=param) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the server's own
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        if image.width * image.height > limits.image_pixels:  # known from the header, before anything is unpacked
            raise RequestError(
                f"a picture may have at most {limits.image_pixels} pixels, got {image.width} x {image.height}",
                param=param,
                status=413,
            )
        image.load()
        upright: Image.Image = ImageOps.exif_transpose(image)
    except RequestError:
        raise
    except Image.DecompressionBombError as error:
        raise RequestError(
            f"a picture may have at most {limits.image_pixels} pixels", param=param, status=413
        ) from error
    except Exception as error:  # Pillow's decoders raise errors of many kinds on broken files
        raise RequestError(f"the picture cannot be read ({', '.join(FORMATS)}): {error}", param=param) from error
    return upright


def png_base64(image: Image.Image) -> str:
    """Return a picture as a PNG file in base64."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def data_address(image: Image.Image) -> str:
    """Return a picture as a `data:` address."""
    return f"data:image/png;base64,{png_base64(image)}"
