"""A picture as the bag of its tokens: how often each code occurs, weighted by how rare it is."""

from __future__ import annotations

import torch
from torch import Tensor

from visual_tokenizer.outputs import ABSENT


def code_numbers(indices: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """Return each present token's picture and the number of its code, both (T,) int64.

    Codebook q has the numbers q K … (q + 1) K − 1.

    Args:
        indices: (P, N, Q) integers in [0, K), or `ABSENT`.
        codebook_size: K.
    """
    pictures, _, books = (indices != ABSENT).nonzero(as_tuple=True)
    return pictures, indices[indices != ABSENT].long() + books * codebook_size


class TokenBags:
    """TF-IDF of tokens, of unit length: counts times 1 + ln((1 + P) / (1 + P_c)), P_c the pictures that hold code c.

    Only codes that some training picture holds are columns, so that the size of the codebook costs nothing; other codes
    are left out. The bag is sparse from the beginning.

    Args:
        indices: (P, N, Q) of the training pictures.
        codebook_size: K.
    """

    def __init__(self, indices: Tensor, codebook_size: int) -> None:
        self.codebook_size = codebook_size
        self.vocabulary = code_numbers(indices, codebook_size)[1].unique()
        counts = self._counts(indices)
        holding = torch.bincount(counts.indices()[1], minlength=len(self.vocabulary)).double()
        self.rarity = 1 + ((1 + len(indices)) / (1 + holding)).log()

    def _counts(self, indices: Tensor) -> Tensor:
        pictures, numbers = code_numbers(indices, self.codebook_size)
        columns = torch.searchsorted(self.vocabulary, numbers).clamp(max=max(0, len(self.vocabulary) - 1))
        known = self.vocabulary[columns] == numbers if len(self.vocabulary) else torch.zeros_like(numbers).bool()
        places = torch.stack([pictures[known], columns[known]])
        ones = torch.ones(places.shape[1], dtype=torch.float64)
        return torch.sparse_coo_tensor(
            places, ones, (len(indices), len(self.vocabulary)), check_invariants=False
        ).coalesce()

    def __call__(self, indices: Tensor) -> Tensor:
        """Return the bags of (P, N, Q) indices, sparse (P, V) float64 of unit length (0 where no code is known)."""
        counts = self._counts(indices)
        rows, columns = counts.indices()
        values = counts.values() * self.rarity[columns]
        squares = torch.zeros(len(indices), dtype=torch.float64).index_add_(0, rows, values.square())
        values = values / squares.sqrt()[rows]
        return torch.sparse_coo_tensor(counts.indices(), values, counts.shape, check_invariants=False).coalesce()
