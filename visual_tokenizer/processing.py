"""Pictures ↔ pixels in [-1, 1], as a transformers image processor. Works on Pillow and numpy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import SizeDict

from visual_tokenizer.data.decoding import UnreadableImageError, decode_image, to_rgb
from visual_tokenizer.data.transforms import center_crop, pixels_to_bytes, resize_to_cover
from visual_tokenizer.errors import UserError
from visual_tokenizer.runs.saved_models import PREPROCESSOR, loading


class VisualTokenizerImageProcessor(PilBackend):
    """Resize (shorter side), centre crop and scale to [-1, 1]; and back.

    Settings, saved in `preprocessor_config.json`:
        size: an int for a square, or `{"height", "width"}`, in pixels.
        resample: Pillow's filter; LANCZOS by default.
        do_resize, do_center_crop: without the crop a picture is stretched to `size`; without the resize it
            must be at least `size` large and only its middle is taken.

    Calling it, or `preprocess`, takes Pillow images, uint8 arrays or tensors (H, W), (H, W, C) or (C, H, W),
    local files, or lists of these, and returns a `BatchFeature` with `pixel_values` float32 (B, 3, H, W).
    Transparency is blended on white.

    Raises:
        UserError: not a picture, no pixels, float values, or a file that cannot be decoded.
    """

    do_convert_rgb = True
    do_resize = True
    do_center_crop = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    size: ClassVar[Any] = {"height": 256, "width": 256}
    resample = Image.Resampling.LANCZOS
    default_to_square = True

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load `preprocessor_config.json` from a folder or a hub name.

        Raises:
            UserError: it is missing or damaged.
        """
        subfolder = kwargs.get("subfolder", "")
        with loading(pretrained_model_name_or_path, "image processor", [PREPROCESSOR], subfolder=subfolder):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def _standardize_kwargs(self, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        kwargs["crop_size"] = None
        settings = super()._standardize_kwargs(**kwargs)
        size = settings["size"]
        if size is None or not size.height or not size.width or size.height < 1 or size.width < 1:
            raise UserError(
                f"size must be a positive int or {{'height': int, 'width': int}} in pixels, got {kwargs.get('size')}"
            )
        # the crop always has the size of the result, so it is not a setting of its own
        settings["crop_size"] = SizeDict(height=size.height, width=size.width)
        return settings

    def fetch_images(self, images: Any) -> Any:
        """Turn files and arrays into Pillow RGB images; lists keep their nesting."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
            return [_to_picture(image) for image in images]
        return _to_picture(images)

    def process_image(self, image: Image.Image, **kwargs: Any) -> Image.Image:  # type: ignore[override]
        return image

    def _preprocess(  # type: ignore[override]
        self,
        images: list[Image.Image],
        *,
        do_resize: bool,
        do_center_crop: bool,
        size: SizeDict,
        resample: int | None,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: tuple[float, ...],
        image_std: tuple[float, ...],
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> Any:
        target = (int(size.height or 0), int(size.width or 0))
        interpolation = Image.Resampling.LANCZOS if resample is None else Image.Resampling(resample)
        return super()._preprocess(
            [_fit(image, target, do_resize, do_center_crop, interpolation) for image in images],
            do_resize=False,
            size=size,
            resample=interpolation,
            do_center_crop=False,
            crop_size=size,
            do_rescale=do_rescale,
            rescale_factor=rescale_factor,
            do_normalize=do_normalize,
            image_mean=list(image_mean),
            image_std=list(image_std),
            do_pad=False,
            pad_size=None,
            return_tensors=return_tensors,
        )

    def postprocess(self, pixels: Tensor) -> list[Image.Image]:
        """Return RGB images of pixels (B, 3, H, W) in [-1, 1], clamped and rounded to 8 bits.

        Raises:
            UserError: another shape, or NaN.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.is_floating_point():
            raise UserError(f"pixels must be a float tensor (B, 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
        if torch.isnan(pixels).any():
            raise UserError("pixels hold NaN")
        values = pixels_to_bytes(pixels).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(np.ascontiguousarray(value)) for value in values]


def _fit(
    image: Image.Image,
    target: tuple[int, int],
    do_resize: bool,
    do_center_crop: bool,
    interpolation: Image.Resampling,
) -> np.ndarray:
    """Return uint8 (3, H, W) of the `target` height and width."""
    height, width = target
    if do_resize and do_center_crop:
        image = resize_to_cover(image, height, width, interpolation)
    elif do_resize:
        image = image.resize((width, height), interpolation)
    if do_center_crop:
        if image.width < width or image.height < height:
            raise UserError(
                f"an image of {image.width} × {image.height} cannot be cropped to {width} × {height} "
                "while do_resize is False"
            )
        image = center_crop(image, height, width)
    return np.asarray(image).transpose(2, 0, 1)


def _to_picture(image: Any) -> Image.Image:
    """Return a Pillow RGB image of a picture, file or uint8 array."""
    try:
        if isinstance(image, (str, Path)):
            return decode_image(image, key=str(image))
        if isinstance(image, (np.ndarray, Tensor)):
            return to_rgb(Image.fromarray(_channels_last(image)))
        if isinstance(image, Image.Image):
            return decode_image(image)
    except UnreadableImageError as error:
        raise UserError(str(error)) from error
    raise UserError(
        f"an image must be a Pillow image, a uint8 array or tensor, or a local file; got {type(image).__name__}"
    )


def _channels_last(image: np.ndarray | Tensor) -> np.ndarray:
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if array.dtype != np.uint8:
        raise UserError(f"an image array must be uint8 in 0 … 255, got {array.dtype}")
    if array.size == 0:
        raise UserError(f"an image must be 1 px or more on each side, got shape {array.shape}")
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] in (3, 4)):
        raise UserError(f"an image array must be (H, W), (H, W, C) or (C, H, W), got shape {array.shape}")
    return np.ascontiguousarray(array)
