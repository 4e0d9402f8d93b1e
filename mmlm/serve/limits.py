"""What a server gives to one request."""

from __future__ import annotations

from dataclasses import dataclass, fields

from visual_tokenizer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Most of each thing; all 1 or more.

    Raises:
        ValueError: a limit below 1.
    """

    images_per_request: int = 10
    """Pictures that one request may draw, and that one answer may hold."""
    new_tokens: int = 8192
    """Tokens of an answer in a conversation, those of pictures included."""
    prompt_characters: int = 20_000
    """Characters of all texts of a request."""
    prompt_images: int = 8
    """Pictures that one request may bring."""
    image_bytes: int = 10 * 2**20
    """Size of a picture that a request brings, as a file."""
    image_pixels: int = 4096 * 4096
    """Width times height of a picture that a request brings or asks for."""
    body_bytes: int = 64 * 2**20
    """Size of a request's body."""
    waiting_requests: int = 64
    """Requests in the queue; more are refused at once."""
    batch_size: int = 16
    """Pictures that are drawn at a time, of one request or of several with the same settings."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise UserError(f"{field.name} must be 1 or more, got {getattr(self, field.name)}")
