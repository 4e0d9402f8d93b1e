"""What stands before a picture that is to be drawn: text, pictures, or both in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmlm.layouts.base import Layout
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.errors import UserError


class Segment(NamedTuple):
    """A stretch of a prompt."""

    ids: Tensor
    """Token ids (L,) int64."""
    is_picture: bool
    """Whether it is a picture's whole block."""


class Prompt(NamedTuple):
    """A prompt as token ids."""

    segments: tuple[Segment, ...]
    """Without BOS and without the opening tokens of what is to be drawn."""
    name: str
    """The text itself, or a hash where there are pictures: the random numbers of a row follow from it."""

    def ids(self, layout: Layout, header: Sequence[int] | Tensor = ()) -> Tensor:
        """Return BOS + segments + `header` (L,) int64."""
        return layout.join(layout.bos_ids, *(segment.ids for segment in self.segments), header)


def read_prompts(processor: MultimodalProcessor, prompts: Sequence[Any]) -> list[Prompt]:
    """Return each prompt, a text or a list of texts and pictures, as token ids.

    A picture is what the image processor takes, or its visual indices, an int64 tensor; a `Segment` stands as it is.

    Raises:
        UserError: not a list of prompts, or pictures without a visual tokenizer.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
        raise UserError(f"prompts must be a list of one or more texts, got {prompts!r}")
    lists = [[prompt] if isinstance(prompt, str) else prompt for prompt in prompts]
    for pieces in lists:
        if not isinstance(pieces, (list, tuple)) or not all(isinstance(p, str) or _is_picture(p) for p in pieces):
            raise UserError(
                f"prompts must be a list of one or more texts, or of lists of texts and pictures, got {pieces!r}"
            )
    pixels = [piece for pieces in lists for piece in pieces if not isinstance(piece, (str, Tensor, Segment))]
    indices: Any = iter(processor.encode_images(pixels) if pixels else [])
    found = []
    for prompt, pieces in zip(prompts, lists, strict=True):
        segments = []
        for piece in pieces:
            if isinstance(piece, Segment):
                segments.append(piece)
            elif isinstance(piece, str):
                segments.append(Segment(torch.tensor(processor.text_ids(piece), dtype=torch.int64), False))
            else:
                one = piece if isinstance(piece, Tensor) else next(indices)
                segments.append(Segment(processor.image_block(one).cpu(), True))
        found.append(Prompt(tuple(segments), prompt if isinstance(prompt, str) else _name(segments)))
    return found


def _is_picture(piece: Any) -> bool:
    return not isinstance(piece, (bytes, int, float)) and piece is not None


def _name(segments: Sequence[Segment]) -> str:
    digest = hashlib.sha256()
    for segment in segments:
        digest.update(b"\0" + segment.ids.numpy().tobytes())
    return digest.hexdigest()
