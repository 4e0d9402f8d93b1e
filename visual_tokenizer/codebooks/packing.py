"""Indices of codebooks that are products of small alphabets: digits ↔ index.

Published code does not agree on the order of the digits, and a wrong order decodes to other pictures without an error:
FSQ (arXiv:2309.15505, appendix A) lets the first channel vary fastest; vector-quantize-pytorch's LFQ and bsq-vit
(arXiv:2406.07548) take the first bit for the most significant, Open-MAGVIT2 (arXiv:2409.04410) for the least
significant. So every quantizer with digits declares its order.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from visual_tokenizer.errors import UserError

IndexOrder = Literal["first_fastest", "last_fastest"]
"""Which digit changes from one index to the next."""

BitOrder = Literal["most_significant_first", "least_significant_first"]
"""What the first bit counts: 2^(d−1), or 1."""

MAX_BITS = 62
"""Bits that an int64 index holds such that the number of codes is one too."""


def place_values(levels: Tensor, order: IndexOrder) -> Tensor:
    """Return what one step of each digit adds to the index, (d,) int64; digit i has `levels[i]` values, (d,) int64.

    `order` says whether the first or the last digit varies fastest.
    """
    if order == "last_fastest":
        return place_values(levels.flip(0), "first_fastest").flip(0)
    return torch.cat([levels.new_ones(1), levels.cumprod(0)[:-1]])


def pack(digits: Tensor, places: Tensor) -> Tensor:
    """Return the indices of digits: (…, d) int64 → (…) int64."""
    return (digits * places).sum(dim=-1)


def unpack(indices: Tensor, places: Tensor, levels: Tensor) -> Tensor:
    """Return the digits of indices: (…) int64 → (…, d) int64; the inverse of `pack`."""
    return indices[..., None].div(places, rounding_mode="floor") % levels


def bit_places(bits: int, order: BitOrder) -> Tensor:
    """Return the place values of `bits` binary digits, (bits,) int64."""
    shifts = torch.arange(bits)
    return 2 ** (shifts.flip(0) if order == "most_significant_first" else shifts)


def pack_signs(is_positive: Tensor, places: Tensor) -> Tensor:
    """Return the indices of signs: (…, d) bool, +1 is the bit 1 → (…) int64."""
    return pack(is_positive.long(), places)


def unpack_signs(indices: Tensor, places: Tensor) -> Tensor:
    """Return the signs of indices: (…) int64 → (…, d) float32 of −1 and +1; the inverse of `pack_signs`."""
    return ((indices[..., None] & places) != 0).float() * 2 - 1


def bits_of(codebook_size: int) -> int:
    """Return log2 of a codebook's size; ValueError unless that is a power of two from 2 to 2^62."""
    bits = codebook_size.bit_length() - 1
    if codebook_size < 2 or codebook_size != 2**bits or bits > MAX_BITS:
        raise UserError(
            f"codebook_size must be a power of two from 2 to 2^{MAX_BITS}, which an int64 index holds, got "
            f"{codebook_size}; more bits than that are several codebooks a position"
        )
    return bits
