"""What a model makes of hidden patches, as a picture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visual_tokenizer.pretraining.targets import TokenTargets, resized

GREY = 0.0
"""Colour of a hidden patch, in [-1, 1]."""


def hidden(pixels: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return pixels (B, 3, H, W) with the patches of a mask (B, N) grey."""
    places = mask.reshape(len(mask), 1, *grid)
    rows, columns = pixels.shape[-2] // grid[0], pixels.shape[-1] // grid[1]
    return pixels.masked_fill(places.repeat_interleave(rows, 2).repeat_interleave(columns, 3), GREY)


@torch.no_grad()
def predicted_indices(model: nn.Module, pixels: Tensor, mask: Tensor, indices: Tensor) -> Tensor:
    """Return indices (B, N, C) with the most likely ones in the masked places (B, N)."""
    was_training = model.training
    model.eval()
    try:
        logits = model(pixel_values=pixels, bool_masked_pos=mask).logits
    finally:
        model.train(was_training)
    guessed = logits.reshape(*indices.shape, -1).argmax(-1)
    return torch.where(mask[..., None], guessed, indices)


@torch.no_grad()
def prediction_rows(
    model: nn.Module, targets: TokenTargets, pixels: Tensor, mask: Tensor, grid: tuple[int, int]
) -> list[Tensor]:
    """Return the rows of a grid, each (B, 3, H, W) in [-1, 1].

    They are: the pictures; what the model sees; decoded from all true tokens; decoded with predicted tokens in the
    masked places.
    """
    indices = targets(pixels)
    guessed = predicted_indices(model, pixels, mask, indices)
    decoded = [resized(targets.decode(tokens), pixels.shape[-1]) for tokens in (indices, guessed)]
    return [pixels, hidden(pixels, mask, grid), *decoded]
