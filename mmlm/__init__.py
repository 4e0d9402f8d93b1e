"""Merge a visual tokenizer into a causal language model; train and sample it over text and picture tokens."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmlm.backbones.base import load_published_lm
    from mmlm.generation.best_of import generate_best
    from mmlm.generation.captions import describe_images
    from mmlm.generation.images import generate_images
    from mmlm.generation.interleaved import generate_interleaved
    from mmlm.merging.merge import merge_vocabulary
    from mmlm.merging.strip import strip_vocabulary
    from mmlm.processing import MultimodalProcessor
    from mmlm.vocabulary import VisualVocabulary

# Imported when first used: `mmlm --help` should not wait for torch and transformers.
_HOMES = {
    "MultimodalProcessor": "mmlm.processing",
    "VisualVocabulary": "mmlm.vocabulary",
    "describe_images": "mmlm.generation.captions",
    "generate_best": "mmlm.generation.best_of",
    "generate_images": "mmlm.generation.images",
    "generate_interleaved": "mmlm.generation.interleaved",
    "load_published_lm": "mmlm.backbones.base",
    "merge_vocabulary": "mmlm.merging.merge",
    "strip_vocabulary": "mmlm.merging.strip",
}

__all__ = [
    "MultimodalProcessor",
    "VisualVocabulary",
    "describe_images",
    "generate_best",
    "generate_images",
    "generate_interleaved",
    "load_published_lm",
    "merge_vocabulary",
    "strip_vocabulary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mmlm' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
