"""Blockwise masking of patches.

Paper: BEiT: BERT Pre-Training of Image Transformers (Bao et al., 2022), arXiv:2106.08254, algorithm 1. As in the
authors' program, and unlike the paper's listing, a block that would mask more patches than are wanted is drawn again,
and after ten vain draws the mask stays as it is: never more patches than wanted, now and then fewer.
"""

from __future__ import annotations

import hashlib
import math
import random

import numpy as np
import torch
from torch import Tensor

from visual_tokenizer.errors import UserError

PAPER_PATCHES = 14 * 14
PAPER_MASKED = 75
PAPER_SMALLEST_BLOCK = 16
DRAWS = 10


def scaled_count(count: int, grid: tuple[int, int]) -> int:
    """Return what `count` patches of the paper's 14 × 14 are on another grid; 1 or more."""
    return max(1, round(count * grid[0] * grid[1] / PAPER_PATCHES))


class BlockMasking:
    """Draws masks of rectangular blocks; the same mask for the same seed and sample.

    Args:
        grid: patches of a column and of a row.
        masked_patches: how many are masked; None: 75 of 196, scaled to the grid.
        min_block_patches: smallest area that is drawn for a block; None: 16 of 196, scaled.
        min_aspect: a block's height through its width is in [min_aspect, 1 / min_aspect].
        seed: of all draws.

    Raises:
        ValueError: nothing would be masked, or all, or a block is larger than what is masked.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        *,
        masked_patches: int | None = None,
        min_block_patches: int | None = None,
        min_aspect: float = 0.3,
        seed: int = 0,
    ) -> None:
        patches = grid[0] * grid[1]
        self.grid = grid
        self.masked_patches = scaled_count(PAPER_MASKED, grid) if masked_patches is None else masked_patches
        smallest = scaled_count(PAPER_SMALLEST_BLOCK, grid) if min_block_patches is None else min_block_patches
        self.min_block_patches = smallest
        self.largest_log_aspect = -math.log(min_aspect)
        self.seed = seed
        if not 1 <= self.masked_patches < patches:
            raise UserError(
                f"masking.masked_patches must be in 1 … {patches - 1} on a grid of {grid[0]} × {grid[1]} patches, "
                f"got {self.masked_patches}"
            )
        if not 1 <= smallest <= self.masked_patches:
            raise UserError(
                f"masking.min_block_patches must be in 1 … {self.masked_patches} (what is masked), got {smallest}"
            )

    def __call__(self, sample: int) -> Tensor:
        """Return the mask of sample number `sample`: bool (h, w), true where a patch is masked."""
        digest = hashlib.blake2b(f"mask/{self.seed}/{sample}".encode(), digest_size=8).digest()
        chance = random.Random(int.from_bytes(digest, "little"))
        mask = np.zeros(self.grid, dtype=bool)  # ten times as fast as a tensor at these sizes
        wanted = self.masked_patches
        while wanted:
            added = self._add_block(mask, wanted, chance)
            if not added:
                break
            wanted -= added
        return torch.from_numpy(mask)

    def _add_block(self, mask: np.ndarray, most: int, chance: random.Random) -> int:
        """Mask a block of at most `most` new patches and return their number; 0 where no draw fitted."""
        rows, columns = self.grid
        for _ in range(DRAWS):
            area = chance.uniform(self.min_block_patches, most)
            aspect = math.exp(chance.uniform(-self.largest_log_aspect, self.largest_log_aspect))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top, left = chance.randint(0, rows - height), chance.randint(0, columns - width)
            block = mask[top : top + height, left : left + width]
            new = height * width - int(block.sum())
            if 0 < new <= most:
                block[:] = True
                return new
        return 0
