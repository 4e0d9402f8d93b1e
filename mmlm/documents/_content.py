"""Objects of JSON as turns: messages with content parts, parallel lists, or a text with marks where pictures stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmlm.documents.base import ROLES, BrokenDocumentError, Part, Picture, Turn

PICTURE_MARK = "<image>"
PARAGRAPHS = "\n\n"
REFERENCES = ("image", "path", "url")
"""Keys under which a content part of type image may name its picture."""

ReadPicture = Callable[[Any], Picture]


def turns_of(entry: Any, read_picture: ReadPicture) -> tuple[Turn, ...]:
    """Return the turns of an object that holds `messages`; or `texts` and `images`; or `text` and maybe `images`.

    Args:
        entry: the object.
        read_picture: returns the picture that a reference stands for.

    Raises:
        BrokenDocumentError: it is not such an object.
    """
    if not isinstance(entry, Mapping):
        raise BrokenDocumentError(f"an object is needed, got {type(entry).__name__}")
    if "messages" in entry:
        return chat(entry["messages"], entry.get("images"), read_picture)
    if "texts" in entry:
        return (Turn("", tuple(interleaved(entry["texts"], entry.get("images"), read_picture))),)
    if "text" in entry:
        return (Turn("", tuple(marked(entry["text"], entry.get("images"), read_picture))),)
    raise BrokenDocumentError(f"one of the keys messages, texts or text is needed, there are {', '.join(entry)}")


def chat(messages: Any, images: Any, read_picture: ReadPicture) -> tuple[Turn, ...]:
    """Return messages `{"role", "content"}` as turns; content is a text or a list of `{"type": "text"|"image"}`.

    A part of type image names its picture itself, or stands for the next of `images`, as `<image>` in a text does
    where there are `images`.

    Raises:
        BrokenDocumentError: an unknown role or type, or not as many pictures as places.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BrokenDocumentError("messages must be a list of one message or more")
    waiting = None if images is None else list(as_list(images, "images"))
    turns = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, Mapping) else message
            raise BrokenDocumentError(f"messages[{number}].role must be one of {', '.join(ROLES)}, got {role!r}")
        content = message.get("content")
        pieces = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = [part for piece in as_list(pieces, "content") for part in _content_part(piece, waiting, read_picture)]
        if not any(parts):
            raise BrokenDocumentError(f"messages[{number}].content must hold a text or a picture, got {content!r}")
        turns.append(Turn(message["role"], tuple(part for part in parts if part != "")))
    if waiting:
        raise BrokenDocumentError(f"{len(waiting)} of the images have no place in the messages")
    return tuple(turns)


def _content_part(piece: Any, waiting: list[Any] | None, read_picture: ReadPicture) -> list[Part]:
    kind = piece.get("type") if isinstance(piece, Mapping) else None
    if kind == "text" and isinstance(piece.get("text"), str):
        texts = piece["text"].split(PICTURE_MARK) if waiting is not None else [piece["text"]]
        parts: list[Part] = [texts[0]]
        for text in texts[1:]:
            parts += [read_picture(_next(waiting)), text]
        return parts
    if kind == "image":
        named = [piece[key] for key in REFERENCES if piece.get(key) is not None]
        return [read_picture(named[0] if named else _next(waiting))]
    raise BrokenDocumentError(f"a content part must be of type text, with a text, or image; got {str(piece)[:80]}")


def _next(waiting: list[Any] | None) -> Any:
    if not waiting:
        raise BrokenDocumentError("there are fewer images than places for them")
    return waiting.pop(0)


def interleaved(texts: Any, images: Any, read_picture: ReadPicture, between: str = PARAGRAPHS) -> list[Part]:
    """Return parallel lists, in which one holds None where the other has something, as parts in reading order.

    Raises:
        BrokenDocumentError: no lists, or lists of different lengths.
    """
    texts = as_list(texts, "texts")
    images = [None] * len(texts) if images is None else as_list(images, "images")
    if len(texts) != len(images):
        raise BrokenDocumentError(f"texts and images must be of equal length, got {len(texts)} and {len(images)}")
    parts: list[Part] = []
    for text, image in zip(texts, images, strict=True):
        if image is not None:
            parts.append(read_picture(image))
        if text is not None:
            parts.append(str(text))
    return join_texts(parts, between)


def marked(text: Any, images: Any, read_picture: ReadPicture) -> list[Part]:
    """Return a text in which `<image>` stands for each of `images` as parts; without `images` there are no marks.

    Raises:
        BrokenDocumentError: no text, or not as many pictures as marks.
    """
    if not isinstance(text, str):
        raise BrokenDocumentError(f"text must be a text, got {type(text).__name__}")
    if images is None:
        return [text] if text else []
    pictures = list(as_list(images, "images"))
    pieces = text.split(PICTURE_MARK)
    if len(pieces) - 1 != len(pictures):
        raise BrokenDocumentError(f"{len(pictures)} images for {len(pieces) - 1} places {PICTURE_MARK} in the text")
    parts: list[Part] = [pieces[0]]
    for picture, piece in zip(pictures, pieces[1:], strict=True):
        parts += [read_picture(picture), piece]
    return [part for part in parts if part != ""]


def join_texts(parts: Iterable[Part], between: str) -> list[Part]:
    """Return the parts with neighbouring texts joined by `between`, and blank ones left out."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and not part.strip():
            continue
        last = joined[-1] if joined else None
        if isinstance(part, str) and isinstance(last, str):
            joined[-1] = last + between + part
        else:
            joined.append(part)
    return joined


def as_list(value: Any, name: str) -> Sequence[Any]:
    """Return `value` if it is a list, else raise BrokenDocumentError."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return value
    raise BrokenDocumentError(f"{name} must be a list, got {type(value).__name__}")


def file_in(folder: str | None, reference: Any) -> Picture:
    """Return the picture of a reference: bytes, `{"bytes", "path"}`, or a path, which may be relative to `folder`.

    Raises:
        BrokenDocumentError: none of these.
    """
    if isinstance(reference, Mapping):
        if reference.get("bytes") is not None:
            return Picture(dict(reference))
        reference = reference.get("path")
    if reference is None or isinstance(reference, bytes):
        return Picture(reference)
    if isinstance(reference, str):
        return Picture(str(Path(folder or "", reference)))
    raise BrokenDocumentError(f"a picture must be bytes or a path, got {type(reference).__name__}")
