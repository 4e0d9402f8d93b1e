"""Pictures of different numbers of tokens in one tensor: each picture's own first, `ABSENT` behind them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from visual_tokenizer.decoders.base import Decoder
from visual_tokenizer.encoders.base import Encoder, ResolutionError
from visual_tokenizer.outputs import ABSENT
from visual_tokenizer.quantizers.base import Quantizer
from visual_tokenizer.registry import ConfigError


def own_tokens(indices: Tensor) -> list[Tensor]:
    """Return the indices of each picture without the `ABSENT` ones behind them.

    Args:
        indices: int64 (B, N), or (B, N, num_codebooks).

    Returns:
        B tensors (n,) or (n, num_codebooks).
    """
    first = indices if indices.ndim == 2 else indices[..., 0]
    return [row[:length] for row, length in zip(indices, (first != ABSENT).sum(1).tolist(), strict=True)]


def pad_tokens(pictures: Sequence[Tensor], most: int) -> Tensor:
    """Undo `own_tokens`: return (B, most[, num_codebooks]) of B tensors (n[, num_codebooks]), `ABSENT` behind them."""
    padded = pictures[0].new_full((len(pictures), most, *pictures[0].shape[1:]), ABSENT)
    for row, picture in zip(padded, pictures, strict=True):
        row[: len(picture)] = picture
    return padded


def present_tokens(indices: Tensor, most: int, num_codebooks: int) -> Tensor:
    """Return which tokens are pictures' own, (B, n) bool.

    Args:
        indices: int64 (B, n), or (B, n, num_codebooks), of any n up to `most`.
        most: tokens that a picture can have.
        num_codebooks: indices a token.

    Raises:
        ResolutionError: another shape, a picture without tokens, or `ABSENT` before a picture's last token.
    """
    books = (num_codebooks,) if num_codebooks > 1 else ()
    if indices.ndim != 2 + len(books) or indices.shape[2:] != books or not 0 < indices.shape[1] <= most:
        wanted = ", ".join(map(str, ("B", f"1 to {most}", *books)))
        raise ResolutionError(f"indices must be ({wanted}), got {tuple(indices.shape)}")
    absent = (indices == ABSENT).flatten(2) if books else (indices == ABSENT)[..., None]
    present = ~absent.any(2)
    is_ordered = present[:, :1] & (present.long().diff(dim=1) <= 0).all(1, keepdim=True)
    if not bool((is_ordered & (absent.all(2) == ~present)).all()):
        raise ResolutionError(f"indices must hold one or more tokens a picture, and {ABSENT} only behind its last")
    return present


def refuse_lengths_that_do_not_fit(encoder: Encoder, quantizer: Quantizer, decoder: Decoder) -> None:
    """Raise `ConfigError` where a part would take absent latents for latents."""
    inner = [part for part in encoder.modules() if isinstance(part, Encoder) and part is not encoder]
    if any(part.has_variable_length for part in inner):
        raise ConfigError(f"{type(encoder).__name__} takes encoders of fixed length only within it")
    if not encoder.has_variable_length:
        return
    gives = f"{type(encoder).__name__} gives a picture as many latents as it needs"
    if quantizer.latent_grid is not None:
        raise ConfigError(f"{gives}: quantizer must take each by itself, but {type(quantizer).__name__} takes grids")
    if not decoder.takes_variable_length:
        raise ConfigError(f"{gives}: decoder must take any number, and {type(decoder).__name__} does not")
