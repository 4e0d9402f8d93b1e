"""Sequences put together to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmlm.losses.cross_entropy import IGNORED_LABEL
from mmlm.vocabulary import PADDING


@dataclass
class SequenceCollator:
    """Pads items on the right to the longest: `input_ids`, `labels`, `token_kinds`, each int64 (B, L).

    Packed items have `position_ids` too; their padding is a document of its own, which nothing is trained on.
    There is no attention mask: under causal attention no token sees the padding that follows it.
    """

    pad_id: int
    """Id of the padding; its label is -100, its kind -1."""
    pad_to_multiple_of: int = 1
    """L is rounded up to a multiple of this."""

    def __call__(self, items: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """Return the batch."""
        longest = max(len(item["input_ids"]) for item in items)
        width = -(-longest // self.pad_to_multiple_of) * self.pad_to_multiple_of
        fills = {"input_ids": self.pad_id, "labels": IGNORED_LABEL, "token_kinds": PADDING}
        batch = {name: np.full((len(items), width), fill, dtype=np.int64) for name, fill in fills.items()}
        if "position_ids" in items[0]:
            lengths = np.array([len(item["input_ids"]) for item in items])
            batch["position_ids"] = np.maximum(np.arange(width) - lengths[:, None], 0)
        for row, item in enumerate(items):
            for name, rows in batch.items():
                rows[row, : len(item[name])] = item[name]
        return {name: torch.from_numpy(rows) for name, rows in batch.items()}
