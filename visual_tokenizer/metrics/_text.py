"""Reading text in pictures, and how far two strings are apart: what `text_fidelity` is made of."""

from __future__ import annotations

import importlib.metadata
from typing import Any, Protocol

import numpy as np
import torch

from visual_tokenizer.backbones.base import MissingWeightsError

PACKAGE = "rapidocr-onnxruntime"
MIN_SIDE = 2.0
"""Pixels of a region's shorter side below which it is left out."""


class TextReader(Protocol):
    """Finds regions of text and reads them."""

    name: str
    """What tells the reader from others."""

    def find(self, picture: np.ndarray) -> list[np.ndarray]:
        """Return the four corners (4, 2) of each region of text in an RGB picture, uint8 (H, W, 3)."""

    def read(self, picture: np.ndarray, regions: list[np.ndarray]) -> list[str]:
        """Return the text in each of `regions`."""


class RapidReader:
    """PP-OCR (arXiv:2009.09941) by the package rapidocr-onnxruntime, which ships its models.

    Args:
        min_score: regions read with less confidence are no text.

    Raises:
        MissingWeightsError: the package is not installed.
    """

    def __init__(self, min_score: float) -> None:
        try:
            from rapidocr_onnxruntime import RapidOCR
        except ImportError as error:
            raise MissingWeightsError(
                f"text_fidelity reads text with the package {PACKAGE}: `pip install {PACKAGE}` (Python 3.12 or older) "
                "brings it with its models"
            ) from error
        # By default it takes every core of the machine, and so would each process.
        threads = torch.get_num_threads()
        self.engine: Any = RapidOCR(text_score=min_score, intra_op_num_threads=threads, inter_op_num_threads=1)
        self.name = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"

    def find(self, picture: np.ndarray) -> list[np.ndarray]:
        """Return the corners of the regions that hold text; see the protocol."""
        found, _ = self.engine(_bgr(picture))
        regions = [np.asarray(corners, dtype=np.float32) for corners, *_ in found or []]
        return [region for region in regions if _shorter_side(region) >= MIN_SIDE]

    def read(self, picture: np.ndarray, regions: list[np.ndarray]) -> list[str]:
        """Return the text in each of `regions`; see the protocol."""
        if not regions:
            return []
        lines, _ = self.engine.text_rec(self.engine.get_crop_img_list(_bgr(picture), regions))
        return [str(text) for text, *_ in lines]


def _bgr(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture[..., ::-1])


def _shorter_side(region: np.ndarray) -> float:
    return float(np.linalg.norm(region - np.roll(region, 1, axis=0), axis=1).min())


def edit_distance(first: str, second: str) -> int:
    """Return the fewest insertions, deletions and substitutions that turn `first` into `second` (Levenshtein)."""
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, start=1):
        before, row[0] = row[0], number
        for place, other in enumerate(second, start=1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (letter != other))
    return row[-1]
