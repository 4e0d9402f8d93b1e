"""Cosines of held-out with training pictures, some at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.semantics._pictures import View

ELEMENTS = 1 << 24
"""Numbers that a part of the cosines, or of the bags made dense, holds at most."""


def cosines(view: View) -> Iterator[Tensor]:
    """Yield the cosines (Q, P) float64 of some held-out pictures with all training pictures, in order."""
    bank, queries = view.train, view.heldout
    if not bank.is_sparse:
        bank, queries = F.normalize(bank, dim=1), F.normalize(queries, dim=1)
    size = max(1, ELEMENTS // max(1, *bank.shape))
    for start in range(0, queries.shape[0], size):
        numbers = torch.arange(start, min(start + size, queries.shape[0]))
        part = queries.index_select(0, numbers)
        if bank.is_sparse:  # bags are of unit length as they come
            yield torch.sparse.mm(bank, part.to_dense().T.contiguous()).T
        else:
            yield part @ bank.T
