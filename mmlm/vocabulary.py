"""The one place that maps visual indices (0 … K-1) to token ids of a language model, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from visual_tokenizer.errors import IndexOutOfRangeError, UserError

KINDS = ("text", "image", "structure")
"""What a token is; its place here is its value in `token_kinds`."""
TEXT, IMAGE, STRUCTURE = range(3)
PADDING = -1
"""Value of `token_kinds` where there is no token."""


class VisualVocabulary:
    """A bijection between (codebook, index) and token id.

    Two forms: contiguous ranges, one per codebook (`id = start + codebook · K + index`), or an explicit table for
    vocabularies whose id order is not the code order (Chameleon's). Where a position has several codebooks, indices and
    ids carry a last dimension `num_codebooks`. Everything runs on the device of its argument.

    Args:
        start: first id of the contiguous form; exclusive with `table`.
        size: K, codes in each codebook, of the contiguous form.
        num_codebooks: codebooks of the contiguous form, each with its own K ids.
        table: ids of the explicit form, (K,) or (num_codebooks, K) in index order, each at least 0 and used once.

    Raises:
        ValueError: sizes below 1, negative or repeated ids, both forms or neither.
    """

    def __init__(
        self,
        *,
        start: int | None = None,
        size: int | None = None,
        num_codebooks: int = 1,
        table: Sequence[Any] | Tensor | None = None,
    ) -> None:
        if (table is None) == (start is None):
            raise UserError("give either start and size, or table")
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._table: Tensor | None = None
        if table is None:
            if size is None or size < 1 or num_codebooks < 1 or start is None or start < 0:
                raise UserError(
                    "start must be 0 or more, size and num_codebooks 1 or more; "
                    f"got start={start}, size={size}, num_codebooks={num_codebooks}"
                )
            self.start, self.codebook_size, self.num_codebooks = start, size, num_codebooks
            self.stop = start + size * num_codebooks
            return
        rows = torch.as_tensor(table, dtype=torch.int64, device="cpu")
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.ndim != 2 or rows.numel() == 0:
            raise UserError(f"table must be (K,) or (num_codebooks, K) with K >= 1, got {tuple(rows.shape)}")
        if int(rows.min()) < 0 or rows.unique().numel() != rows.numel():
            raise UserError("table must hold ids of 0 or more, each once: the map must be a bijection")
        self._table = rows.contiguous()
        self.num_codebooks, self.codebook_size = rows.shape
        self.start, self.stop = int(rows.min()), int(rows.max()) + 1

    @property
    def size(self) -> int:
        """Number of visual token ids: `codebook_size · num_codebooks`."""
        return self.codebook_size * self.num_codebooks

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return on `device` the flat ids (num_codebooks · K,) and the inverse (stop - start,), -1: none."""
        if device not in self._on_device:
            assert self._table is not None
            ids = self._table.flatten()
            inverse = torch.full((self.stop - self.start,), -1, dtype=torch.int64)
            inverse[ids - self.start] = torch.arange(ids.numel())
            self._on_device[device] = (ids.to(device), inverse.to(device))
        return self._on_device[device]

    def visual_ids(self, codebook: int = 0, device: torch.device | str = "cpu") -> Tensor:
        """Return the ids (K,) int64 of one codebook in index order.

        Raises:
            IndexOutOfRangeError: no such codebook.
        """
        if not 0 <= codebook < self.num_codebooks:
            raise IndexOutOfRangeError(f"codebook must be in [0, {self.num_codebooks}), got {codebook}")
        if self._table is None:
            first = self.start + codebook * self.codebook_size
            return torch.arange(first, first + self.codebook_size, device=device)
        return self._table[codebook].to(device)

    def _offsets(self, device: torch.device) -> Tensor:
        """Return the flat number of each codebook's first code, (num_codebooks,)."""
        return torch.arange(self.num_codebooks, device=device) * self.codebook_size

    def _check_codebook_dimension(self, values: Tensor, what: str) -> None:
        if self.num_codebooks > 1 and (values.ndim == 0 or values.shape[-1] != self.num_codebooks):
            raise IndexOutOfRangeError(
                f"the last dimension of {what} must be the {self.num_codebooks} codebooks, got {tuple(values.shape)}"
            )
        if values.dtype == torch.bool or values.is_floating_point() or values.is_complex():
            raise IndexOutOfRangeError(f"{what} must be whole numbers, got {values.dtype}")

    def indices_to_ids(self, indices: Tensor) -> Tensor:
        """Map indices (…) or (…, num_codebooks), each in [0, K), to token ids of the same shape, int64.

        Raises:
            IndexOutOfRangeError: an index below 0 or not below K, or a wrong last dimension.
        """
        self._check_codebook_dimension(indices, "indices")
        indices = indices.to(torch.int64)
        wrong = (indices < 0) | (indices >= self.codebook_size)
        if wrong.any():
            raise IndexOutOfRangeError(
                f"index {int(indices[wrong][0])} is outside the codebook, [0, {self.codebook_size})"
            )
        flat = indices + self._offsets(indices.device) if self.num_codebooks > 1 else indices
        return flat + self.start if self._table is None else self._tables(indices.device)[0][flat]

    def _flat(self, ids: Tensor) -> Tensor:
        """Return codebook · K + index of each id, -1 where the id is not visual; same shape."""
        ids = ids.to(torch.int64)
        inside = (ids >= self.start) & (ids < self.stop)
        place = torch.where(inside, ids - self.start, 0)
        return torch.where(inside, place if self._table is None else self._tables(ids.device)[1][place], -1)

    def is_visual(self, ids: Tensor) -> Tensor:
        """Return a bool tensor of the shape of `ids`: which are visual tokens (of any codebook)."""
        return self._flat(ids) >= 0

    def codebook_of(self, ids: Tensor) -> Tensor:
        """Return the codebook of each id, -1 where the id is not a visual token; int64, the shape of `ids`."""
        return torch.div(self._flat(ids), self.codebook_size, rounding_mode="floor")

    def ids_to_indices(self, ids: Tensor) -> Tensor:
        """Map token ids (…) or (…, num_codebooks) back to indices of the same shape, int64.

        Raises:
            IndexOutOfRangeError: an id that is not a visual token, or of another codebook than its place demands.
        """
        self._check_codebook_dimension(ids, "ids")
        flat = self._flat(ids)
        indices = flat - self._offsets(ids.device) if self.num_codebooks > 1 else flat
        wrong = (flat < 0) | (indices < 0) | (indices >= self.codebook_size)
        if wrong.any():
            rule = f"{self.size} ids in [{self.start}, {self.stop})"
            place = " or is of another codebook than its place" if self.num_codebooks > 1 else ""
            raise IndexOutOfRangeError(f"id {int(ids[wrong][0])} is not a visual token ({rule}){place}")
        return indices

    def token_names(self) -> list[str]:
        """Return the names of all visual tokens in the order codebook, index: `<|visual_00000|>` …."""
        width = max(5, len(str(self.size - 1)))
        return [f"<|visual_{number:0{width}d}|>" for number in range(self.size)]

    def to_dict(self) -> dict[str, Any]:
        """Return the vocabulary in plain JSON types; `from_dict` is the inverse."""
        if self._table is not None:
            return {"table": self._table.tolist()}
        return {"start": self.start, "size": self.codebook_size, "num_codebooks": self.num_codebooks}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> VisualVocabulary:
        """Build the vocabulary that `to_dict` described."""
        return cls(**fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VisualVocabulary) and self.to_dict() == other.to_dict()

    def __repr__(self) -> str:
        form = "table" if self._table is not None else "range"
        return (
            f"VisualVocabulary({form} [{self.start}, {self.stop}), codebook_size={self.codebook_size}, "
            f"num_codebooks={self.num_codebooks})"
        )
