"""What is predicted: the indices that a frozen visual tokenizer gives the patches of a picture."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.encoders.base import ResolutionError
from visual_tokenizer.errors import UserError
from visual_tokenizer.modeling import VisualTokenizer


def check_token_grid(tokenizer: VisualTokenizer, image_size: int, patch_size: int, tokenizer_size: int) -> None:
    """Refuse a tokenizer whose tokens don't lie on the patches.

    Args:
        tokenizer: of pictures.
        image_size: side of the picture that the transformer sees, in pixels.
        patch_size: side of a patch in pixels.
        tokenizer_size: side of the picture that the tokenizer sees.

    Raises:
        UserError: tokens in a sequence, of a clip, or on another grid than the patches.
    """
    try:
        tokens = tokenizer.token_grid(tokenizer_size, tokenizer_size, 0)
    except ResolutionError as error:
        raise UserError(f"tokenizer_image_size must be one that the tokenizer takes: {error}") from error
    if len(tokens) == 3 and tokens[0] == 1:
        tokens = tokens[1:]
    if len(tokens) != 2:
        raise UserError(
            f"masked patches are predicted from a token each, but this tokenizer gives a picture a sequence of "
            f"{tokens[0]} tokens that have no place in it; use one whose tokens lie on a grid"
        )
    patches = (image_size // patch_size,) * 2
    if tokens != patches:
        raise UserError(
            f"the patch grid must equal the token grid: image_size {image_size} and model.patch_size {patch_size} give "
            f"{patches[0]} × {patches[1]} patches, the tokenizer gives {tokens[0]} × {tokens[1]} tokens at "
            f"tokenizer_image_size {tokenizer_size}"
        )


class TokenTargets:
    """Turns pictures into the indices of their patches, without gradient and in float32, whatever the autocast.

    Args:
        tokenizer: is put into evaluation mode and takes no gradients from now on.
        size: side of the picture that it sees in pixels; other pictures are resized (bicubic, antialiased).
    """

    def __init__(self, tokenizer: VisualTokenizer, size: int) -> None:
        self.tokenizer = tokenizer.eval().requires_grad_(False)
        self.size = size

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Return indices (B, N, num_codebooks) int64 of pixels (B, 3, H, W) in [-1, 1]."""
        with torch.autocast(pixels.device.type, enabled=False):
            indices = self.tokenizer.encode(resized(pixels.float(), self.size))
        return indices.reshape(len(pixels), -1, self.tokenizer.num_codebooks)

    def decode(self, indices: Tensor) -> Tensor:
        """Return pixels (B, 3, size, size) in [-1, 1] of indices (B, N, num_codebooks)."""
        grid = self.tokenizer.token_grid(self.size, self.size, 0)
        books = indices.shape[2:] if self.tokenizer.num_codebooks > 1 else ()
        pixels = self.tokenizer.decode(indices.reshape(len(indices), *grid, *books))
        return pixels.squeeze(2) if pixels.ndim == 5 else pixels


def resized(pixels: Tensor, size: int) -> Tensor:
    """Return pixels (B, 3, size, size) of (B, 3, H, W), both in [-1, 1]; the same tensor where nothing changes."""
    if pixels.shape[-2:] == (size, size):
        return pixels
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
