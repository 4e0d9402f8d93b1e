"""Messages of a conversation as one prompt."""

from __future__ import annotations

import re
from typing import Any

import torch
from PIL import Image

from mmlm.generation.prompts import Segment
from mmlm.processing import MultimodalProcessor
from mmlm.serve.errors import RequestError
from mmlm.serve.limits import Limits
from mmlm.serve.pictures import read_picture
from mmlm.serve.requests import ChatRequest, Message, Part

MARK = re.compile("\ue000(\\d+)\ue001")
"""Stands for the n-th piece in a rendered template; private characters, which are taken out of users' texts."""


def conversation(request: ChatRequest, processor: MultimodalProcessor, limits: Limits) -> list[Any]:
    """Return the messages as a prompt of texts, pictures and segments for `generate_interleaved`.

    A text tokenizer's chat template is used where it has one. Only the template's own text can become control tokens;
    what users write stays text. Without a template the messages follow each other, one a line.

    Raises:
        RequestError: a part without content, a picture that cannot be read, or more than the limits allow.
    """
    turns: list[tuple[str, list[str | Image.Image]]] = [
        (message.role, _pieces(message, limits, f"messages.{number}"))
        for number, message in enumerate(request.messages)
    ]
    pieces = [piece for _, own in turns for piece in own]
    if sum(not isinstance(piece, str) for piece in pieces) > limits.prompt_images:
        raise RequestError(f"a request may bring at most {limits.prompt_images} pictures", param="messages")
    if sum(len(piece) for piece in pieces if isinstance(piece, str)) > limits.prompt_characters:
        raise RequestError(f"a request may have at most {limits.prompt_characters} characters", param="messages")
    if getattr(processor.tokenizer, "chat_template", None):
        return _with_template(turns, pieces, processor)
    prompt: list[Any] = []
    for number, (_, own) in enumerate(turns):
        prompt += ["\n", *own] if number and own else own
    return prompt


def _with_template(
    turns: list[tuple[str, list[str | Image.Image]]], pieces: list[str | Image.Image], processor: MultimodalProcessor
) -> list[Any]:
    numbers = iter(range(len(pieces)))
    marked = [{"role": role, "content": "".join(f"\ue000{next(numbers)}\ue001" for _ in own)} for role, own in turns]
    try:
        rendered = processor.tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates raise errors of their own about the order of roles
        raise RequestError(f"the model's chat template refuses the messages: {error}", param="messages") from error
    prompt: list[Any] = []
    for place, part in enumerate(MARK.split(str(rendered))):
        if place % 2:
            prompt.append(pieces[int(part)])
        elif part:
            ids = processor.tokenizer(part, add_special_tokens=False)["input_ids"]
            bos = processor.layout.bos_ids
            ids = ids[len(bos) :] if not prompt and bos and ids[: len(bos)] == bos else ids  # it is set anyhow
            prompt.append(Segment(torch.tensor(ids, dtype=torch.int64), False))
    return prompt


def _pieces(message: Message, limits: Limits, param: str) -> list[str | Image.Image]:
    content = message.content
    parts = [Part(type="text", text=content)] if isinstance(content, str) else list(content or [])
    found: list[str | Image.Image] = []
    for number, part in enumerate([*parts, *message.images]):
        where = f"{param}.content.{number}"
        if part.type == "text":
            if part.text is None:
                raise RequestError("a part of type text needs a text", param=where)
            text = re.sub("[\ue000\ue001]", "", part.text)
            found += [text] if text else []
        else:
            if part.image_url is None:
                raise RequestError("a part of type image_url needs an image_url", param=where)
            found.append(read_picture(part.image_url.url, limits, where))
    return found
