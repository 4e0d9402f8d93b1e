"""Pictures of which only some tokens are there yet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmlm.layouts.base import Layout
from mmlm.processing import MultimodalProcessor

OnRows = Callable[[Image.Image, int, int], Any]
"""Called with the picture so far, how many of its rows are done, and the picture's number in the result.

Rows of a tokenizer without rows are its tokens.
"""

UNDRAWN = (128, 128, 128)


def steps_of_rows(layout: Layout, grid: Sequence[int]) -> list[int]:
    """Return after how many tokens of the block's body each row is complete, all rows above it too.

    A row of a 1-D grid is one position.
    """
    body = layout.body(grid)
    order = layout.slot_order(grid)
    places = torch.empty_like(order)
    places[order] = (body < 0).nonzero().flatten() + 1
    rows = math.prod(grid[:-1]) if len(grid) > 1 else grid[0]
    ends: list[int] = places.view(rows, -1).amax(1).cummax(0).values.tolist()
    return ends


def partial_indices(layout: Layout, visual_ids: Tensor, grid: Sequence[int], rows_done: int) -> Tensor:
    """Return indices (B, *grid) or (B, *grid, num_codebooks) of pictures of which only the first rows are drawn.

    Rows that are not there yet repeat the last one that is, so that what a decoder sees around its border is likely.

    Args:
        visual_ids: (B, n) int64, the visual tokens so far in the order of their slots.
        grid: token grid.
        rows_done: complete rows, 1 or more.
    """
    slots = layout.template(grid)
    first = torch.stack([layout.vocabulary.visual_ids(book)[0] for book in range(layout.vocabulary.num_codebooks)])
    ids = first[-1 - slots[slots < 0]].to(visual_ids.device).repeat(len(visual_ids), 1)
    ids[:, : visual_ids.shape[1]] = visual_ids
    indices = layout.indices_of(ids, grid)
    rows = math.prod(grid[:-1]) if len(grid) > 1 else grid[0]
    by_row = indices.reshape(len(ids), rows, -1)
    by_row[:, rows_done:] = by_row[:, rows_done - 1 : rows_done]
    return by_row.view(indices.shape)


def preview_images(
    processor: MultimodalProcessor, visual_ids: Tensor, grid: Sequence[int], rows_done: int
) -> list[Image.Image]:
    """Return what is there of B pictures, grey below; of a 1-D grid, the whole picture as it looks so far.

    Args: as `partial_indices`.
    """
    images = processor.decode_indices(partial_indices(processor.layout, visual_ids, grid, rows_done))
    if len(grid) == 2:
        for image in images:
            done = round(image.height * rows_done / grid[0])
            image.paste(UNDRAWN, (0, done, image.width, image.height))
    return images


def previews_of(
    processor: MultimodalProcessor, grid: Sequence[int], every: int, first: int, on_rows: OnRows
) -> Callable[[int, Tensor], None]:
    """Return what to call after each token: it shows a batch's pictures, of which the first has the number `first`."""
    ends = steps_of_rows(processor.layout, grid)
    shown = {end: row + 1 for row, end in enumerate(ends) if (row + 1) % every == 0 or row + 1 == len(ends)}

    def show(step: int, visual_ids: Tensor) -> None:
        if step in shown:
            for number, image in enumerate(preview_images(processor, visual_ids, grid, shown[step]), first):
                on_rows(image, shown[step], number)

    return show
