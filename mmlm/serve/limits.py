"""What a server gives to one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from visual_tokenizer.fields.ranges import Section

Count = Annotated[int, Ge(1)]


@dataclass(frozen=True, kw_only=True)
class Limits(Section):
    """Most of each thing."""

    images_per_request: Count = 10
    """Pictures that one request may draw, and that one answer may hold."""
    new_tokens: Count = 8192
    """Tokens of an answer in a conversation, those of pictures included."""
    prompt_characters: Count = 20_000
    """Characters of all texts of a request."""
    prompt_images: Count = 8
    """Pictures that one request may bring."""
    image_bytes: Count = 10 * 2**20
    """Size of a picture that a request brings, as a file."""
    image_pixels: Count = 4096 * 4096
    """Width times height of a picture that a request brings or asks for."""
    body_bytes: Count = 64 * 2**20
    """Size of a request's body."""
    waiting_requests: Count = 64
    """Requests in the queue; more are refused at once."""
    batch_size: Count = 16
    """Pictures that are drawn at a time, of one request or of several with the same settings."""
