"""Pictures with captions as sets of documents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mmlm.data.pair_shards import PairShards
from mmlm.documents.pictures import PicturesConfig
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.mixture import MixtureMember
from visual_tokenizer.data.sources.base import SourceConfig


@pytest.fixture(scope="session")
def pair_shards() -> Callable[..., PairShards]:
    """Return the shards, which need not be there, of a split of a source."""

    def make(processor: MultimodalProcessor, source: SourceConfig, folder: Path, split: str = "train") -> PairShards:
        return PairShards(processor, MixtureMember(documents=PicturesConfig(source=source)), split, folder)

    return make
