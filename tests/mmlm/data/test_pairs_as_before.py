"""Sequences of pictures with captions against digests of what revision 311b168 made of the same shards.

It had code of its own for them, so that the digests say that documents of a picture and a caption are the same: ids,
labels and kinds of every item of two and a half epochs, and their lengths.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from mmlm.data.document_sequences import DocumentSequences
from mmlm.data.mixture import StagedSequences
from mmlm.data.packing import PackedSequences
from mmlm.data.pair_shards import PairRows
from mmlm.documents.pictures import Pictures, PicturesConfig
from mmlm.layouts.base import Layout
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.data.sources.base import SourceConfig

MERGED = Path(__file__).parents[2] / "written_before" / "merged"
COUNT = 40
GRIDS = [(4, 4), (2, 3), (1, 5)]


@pytest.fixture(scope="module")
def layout() -> Layout:
    return MultimodalProcessor.from_pretrained(MERGED, load_codec=False).layout


def shards(layout: Layout, grids: list[tuple[int, int]] = GRIDS) -> datasets.Dataset:
    """Pictures of several grids with captions of 0 … 24 words, some of them hostile."""
    chance = np.random.default_rng(0)
    own = [grids[number % len(grids)] for number in range(COUNT)]
    columns = {
        "key": [str(number) for number in range(COUNT)],
        "caption": [("a red dog <s> in the rain " * (number % 5)).strip() for number in range(COUNT)],
        "indices": [chance.integers(0, layout.vocabulary.codebook_size, h * w).astype(np.uint16) for h, w in own],
        "grid": [list(grid) for grid in own],
    }
    return datasets.Dataset.from_dict(columns)


def pairs(
    layout: Layout, rows: datasets.Dataset, *, seed: int = 0, most: int = 256, is_heldout: bool = False, **fields: Any
) -> DocumentSequences:
    source = SourceConfig.family.config({"type": "openmoji"})  # it is not read
    documents = Pictures(PicturesConfig(source=source, **fields))
    stored = PairRows(rows, layout, most)
    return DocumentSequences(stored, layout, documents, seed=seed, shuffle=not is_heldout, is_heldout=is_heldout)


def digest(sequences: Any, count: int) -> str:
    found = hashlib.sha256()
    for item in sequences.__getitems__(range(count)):
        for name in sorted(item):
            assert item[name].dtype == np.int64
            found.update(item[name].astype("<i8").tobytes())
    if hasattr(sequences, "lengths"):
        found.update(sequences.lengths(range(count)).astype("<i8").tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"image_to_text_fraction": 0.0, "caption_dropout": 0.0}, "222cbe61a38e9738"),
        ({"image_to_text_fraction": 1.0, "caption_dropout": 0.0}, "9525daf8c8e6e5a0"),
        ({"image_to_text_fraction": 0.3, "caption_dropout": 0.4, "seed": 7}, "88d040edbcbedcfe"),
        ({"image_to_text_fraction": 0.3, "caption_dropout": 0.4, "loss_on_prompt": False}, "8378be91beb39424"),
        ({"image_to_text_fraction": 0.0, "caption_dropout": 1.0, "loss_on_prompt": False}, "bd4f0cae93690789"),
        ({"image_to_text_fraction": 0.2, "caption_dropout": 0.1, "most": 5}, "e8a65afc3e59bbce"),
        ({"image_to_text_fraction": 0.3, "caption_dropout": 0.4, "is_heldout": True}, "716ef8870145f202"),
    ],
)
def test_items_and_lengths(layout: Layout, fields: dict[str, Any], expected: str) -> None:
    assert digest(pairs(layout, shards(layout), **fields), 5 * COUNT // 2) == expected


def test_packed_rows(layout: Layout) -> None:
    rows = pairs(layout, shards(layout), image_to_text_fraction=0.3, caption_dropout=0.4, seed=3)
    assert digest(PackedSequences(rows, 120, 16, seed=3), 20) == "3d4c02484baa73d1"


def test_stages_of_sizes(layout: Layout) -> None:
    fields: dict[str, Any] = {"image_to_text_fraction": 0.3, "caption_dropout": 0.4}
    sets = [pairs(layout, shards(layout, [grid]), **fields) for grid in GRIDS]
    assert digest(StagedSequences(sets, [30, 55]), 5 * COUNT // 2) == "48032a95c75c544a"
