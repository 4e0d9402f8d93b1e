"""Samples of pixels. Their order and their augmentation are pure functions of (seed, epoch)."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

import datasets
import torch
from torch import Tensor
from torch.utils.data import Dataset

from visual_tokenizer.data.sources.base import Source, row_decoder
from visual_tokenizer.data.transforms import (
    TransformConfig,
    bytes_to_pixels,
    clip_place,
    flips,
    square_bytes,
    uniforms,
)

DEFAULT_CACHE_MEGABYTES = 2048


class SampleKey(NamedTuple):
    """One draw of a sample. It carries the epoch, so that loader workers need no other word of it."""

    epoch: int
    sample: int


def epoch_order(length: int, seed: int, epoch: int) -> Tensor:
    """Return the int64 indices (length,), each sample once, in an order that depends on (seed, epoch) alone."""
    digest = hashlib.blake2b(f"order/{seed}/{epoch}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randperm(length, generator=generator)


def pixel_table(rows: datasets.Dataset, image_size: int, transform: TransformConfig | None = None) -> Tensor:
    """Decode a whole map-style split to uint8 (N, 3, image_size, image_size) in pixels, or (N, 3, T, …) of clips.

    `rows` are what `Source.load` returns. Of `transform` the filter is used; crop and clip are the centre.
    """
    filter_name = (transform or TransformConfig()).resize_filter
    centered = TransformConfig(resize_filter=filter_name)
    source = row_decoder(rows).source
    frames = source.config.clip_frames
    table = torch.empty((len(rows), 3, *([frames] if frames else []), image_size, image_size), dtype=torch.uint8)
    at_once = max(1, 64 // max(1, frames))
    for start in range(0, len(rows), at_once):
        for offset, content in enumerate(rows[start : start + at_once][source.content]):
            table[start + offset] = square_bytes(content, image_size, centered, (0.0, 0.0, 0.0, 0.0))
    return table


class PixelDataset(Dataset):
    """Map-style samples: `pixels` float32 (3, [T,] H, W) in [-1, 1], `index` int, `caption` str, `labels` by column;
    `flipped`, whether it is mirrored.

    With a centre crop, and if all pictures fit in `cache_megabytes`, they are decoded once to a uint8 table. So are
    clips, unless they start anywhere in longer videos.

    Args:
        rows: what `Source.load` returns for a map-style source.
        image_size: side of the square in pixels.
        transform: resize, crop, flip.
        seed: seed of the augmentation.
        cache_megabytes: budget of the table in 10⁶ bytes; 0 for none.
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        image_size: int,
        transform: TransformConfig | None = None,
        seed: int = 0,
        cache_megabytes: float = DEFAULT_CACHE_MEGABYTES,
    ) -> None:
        self.rows = rows
        self.image_size = image_size
        self.transform = transform or TransformConfig()
        self.seed = seed
        self.table: Tensor | None = None
        self.captions: list[str] | None = None
        self.labels: list[dict[str, str]] | None = None
        self.decoder = row_decoder(rows)
        self.encoded = rows.with_format(None)
        source = self.decoder.source
        self.places_clips = source.reads_place
        is_fixed = self.transform.crop == "center" and not (self.places_clips and self.transform.clip_start == "random")
        needed = len(rows) * 3 * max(1, source.config.clip_frames) * image_size**2
        if is_fixed and needed <= cache_megabytes * 1e6:
            self.table = pixel_table(rows, image_size, self.transform)
            self.captions = _captions(rows)
            self.labels = _labels(rows, source)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: SampleKey | int) -> dict[str, Any]:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: list[SampleKey | int]) -> list[dict[str, Any]]:
        """Fetch a batch at once; a plain int is a sample of epoch 0."""
        draws = [key if isinstance(key, tuple) else SampleKey(0, int(key)) for key in keys]
        indices = [index for _, index in draws]
        chances = [uniforms(self.seed, epoch, index) for epoch, index in draws]
        if self.table is not None and self.captions is not None and self.labels is not None:
            values = self.table[torch.tensor(indices)]
            captions = [self.captions[index] for index in indices]
            labels = [self.labels[index] for index in indices]
        else:
            encoded = dict(self.encoded[indices])
            if self.places_clips:
                encoded["place"] = [clip_place(self.transform, self.seed, *draw) for draw in draws]
            batch = self.decoder(encoded)
            contents = batch[self.decoder.source.content]
            squares = [
                square_bytes(content, self.image_size, self.transform, chance)
                for content, chance in zip(contents, chances, strict=True)
            ]
            values = torch.stack(squares)
            captions = batch["caption"]
            source = self.decoder.source
            columns = {name: batch[name] for name in source.label_columns}
            labels = [source.labels({name: column[i] for name, column in columns.items()}) for i in range(len(draws))]
        pixels = bytes_to_pixels(values)
        flipped = [flips(self.transform, chance) for chance in chances]
        for position, is_flipped in enumerate(flipped):
            if is_flipped:
                pixels[position] = pixels[position].flip(-1)
        samples = zip(pixels, indices, captions, labels, flipped, strict=True)
        names = ("pixels", "index", "caption", "labels", "flipped")
        return [dict(zip(names, sample, strict=True)) for sample in samples]


def _captions(rows: datasets.Dataset) -> list[str]:
    texts = rows.with_format(None)["caption"][:] if "caption" in rows.column_names else [""] * len(rows)
    return [(text[0] if text else "") if isinstance(text, list) else str(text or "") for text in texts]


def _labels(rows: datasets.Dataset, source: Source) -> list[dict[str, str]]:
    columns = {name: rows.with_format(None)[name][:] for name in source.label_columns}
    return [source.labels({name: column[row] for name, column in columns.items()}) for row in range(len(rows))]


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack samples: `pixels` (B, 3, [T,] H, W), `index` int64 (B,), `caption` and `labels` lists of B, `flipped`
    bool (B,)."""
    return {
        "pixels": torch.stack([sample["pixels"] for sample in samples]),
        "index": torch.tensor([sample["index"] for sample in samples], dtype=torch.int64),
        "caption": [sample["caption"] for sample in samples],
        "labels": [sample["labels"] for sample in samples],
        "flipped": torch.tensor([sample["flipped"] for sample in samples], dtype=torch.bool),
    }
