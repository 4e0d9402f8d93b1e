"""Samples of text with `<image>` where pictures stand, and batches of sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature

from visual_tokenizer.errors import UserError


def deal_out(text: str | Sequence[str] | None, images: Any, placeholder: str) -> tuple[list[str], list[list[Any]]]:
    """Return one text and one list of pictures for each sample.

    Args:
        text: one sample or several; one placeholder for each picture when None.
        images: a list of lists, one a sample; or one list, dealt out in order; or one picture; or None.
        placeholder: the text that stands for a picture.

    Raises:
        UserError: a sample has more or fewer placeholders than pictures.
        ValueError: neither text nor pictures.
    """
    if images is None:
        images = []
    elif not isinstance(images, (list, tuple)):
        images = [images]
    nested = any(isinstance(item, (list, tuple)) for item in images)
    if text is None:
        text = [placeholder * (len(item) if nested else 1) for item in images]
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise UserError("give text, images or both; got neither")
    wanted = [sample.count(placeholder) for sample in texts]
    if nested and len(images) != len(texts):
        raise UserError(f"{len(texts)} samples of text, but {len(images)} lists of images")
    if not nested:
        if len(images) != sum(wanted):
            counts = ", ".join(f"sample {number}: {count}" for number, count in enumerate(wanted))
            raise UserError(f"{len(images)} images for {sum(wanted)} {placeholder} placeholders ({counts})")
        rest = iter(images)
        images = [[next(rest) for _ in range(count)] for count in wanted]
    for number, (count, sample) in enumerate(zip(wanted, images, strict=True)):
        if count != len(sample):
            raise UserError(
                f"sample {number} has {count} {placeholder} placeholder(s), but {len(sample)} image(s): "
                f"{texts[number]!r}"
            )
    return texts, [list(sample) for sample in images]


def to_batch(
    sequences: list[Tensor], pad_id: int, padding: bool, padding_side: str, return_tensors: str | None
) -> BatchFeature:
    """Return `input_ids` and `attention_mask` of sequences (L,): int64 (B, L) for "pt", lists for None.

    Raises:
        ValueError: an unknown option, or sequences of unequal lengths for tensors without padding.
    """
    if return_tensors not in (None, "pt"):
        raise UserError(f"return_tensors must be 'pt' or None, got {return_tensors!r}")
    if padding_side not in ("left", "right"):
        raise UserError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
    lengths = sorted({len(sequence) for sequence in sequences})
    if return_tensors and not padding and len(lengths) > 1:
        raise UserError(f"samples of {lengths} tokens make no tensor: pass padding=True")
    masks = [torch.ones_like(sequence) for sequence in sequences]
    if padding:
        sequences = list(pad_sequence(sequences, True, float(pad_id), padding_side))
        masks = list(pad_sequence(masks, True, 0.0, padding_side))
    data = {"input_ids": sequences, "attention_mask": masks}
    if return_tensors:
        return BatchFeature({name: torch.stack(value) for name, value in data.items()})
    return BatchFeature({name: [one.tolist() for one in value] for name, value in data.items()})
