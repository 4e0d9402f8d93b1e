"""A chat in the form of the language model's template, trained on the assistant's answers alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from mmlm.data.piece import Piece
from mmlm.documents.base import BrokenDocumentError, Part, Picture, Turn
from mmlm.layouts.base import Layout
from mmlm.vocabulary import IMAGE, STRUCTURE, TEXT

MARK = re.compile("\ue000(\\d+)\ue001")
"""Stands for the n-th part in a rendered template; private characters, which are taken out of users' texts."""
ASSISTANT = "assistant"


def chat_pieces(layout: Layout, turns: Sequence[Turn]) -> list[Piece]:
    """Return a chat from BOS to EOS; the last turn is an answer.

    Only the template's own text can become control tokens; what the speakers write stays text. Trained are the
    assistant's parts and what the template writes to end an answer, up to white space. EOS follows where the template
    does not end answers with it. Without a template, answers follow what was asked after the layout's
    `end_of_turn_ids`, and turns stand a line apart.

    Raises:
        BrokenDocumentError: the template refuses the chat.
    """
    if getattr(layout.tokenizer, "chat_template", None):
        pieces = _with_template(layout, turns)
    else:
        pieces = _without_template(layout, turns)
    if layout.bos_ids:
        pieces.insert(0, Piece(STRUCTURE, False, layout.bos_ids))
    last = pieces[-1]
    if not (last.kind == STRUCTURE and last.is_trained and layout.eos_id in last.ids):
        pieces.append(Piece(STRUCTURE, True, [layout.eos_id]))
    return pieces


def _with_template(layout: Layout, turns: Sequence[Turn]) -> list[Piece]:
    tokenizer = layout.tokenizer
    parts = [(part, turn.role == ASSISTANT) for turn in turns for part in turn.parts]
    ends = _ends_of_answers(tokenizer, turns)
    stretches = MARK.split(_render(tokenizer, turns))
    pieces: list[Piece] = []
    for place, stretch in enumerate(stretches):
        if place % 2:
            part, is_answer = parts[int(stretch)]
            pieces += _part_pieces(
                layout, part if isinstance(part, Picture) else _without_marks(part), is_answer, pieces
            )
            continue
        end = ends.get(int(stretches[place - 1]), "") if place else ""
        is_last = place == len(stretches) - 1
        pieces += _template_pieces(layout, stretch, end, is_first=place == 0, is_last=is_last)
    return pieces


def _render(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> str:
    """Return the template's text with a mark for each part."""
    number = 0
    marked = []
    for turn in turns:
        marks = [f"\ue000{number + place}\ue001" for place in range(len(turn.parts))]
        marked.append({"role": turn.role, "content": "".join(marks)})
        number += len(marks)
    try:
        rendered = str(tokenizer.apply_chat_template(marked, tokenize=False))
    except (TemplateError, TypeError) as error:  # templates raise errors of their own about the order of roles
        raise BrokenDocumentError(f"the chat template refuses it: {error}") from error
    if [int(found) for found in MARK.findall(rendered)] != list(range(number)):
        raise BrokenDocumentError("the chat template leaves out, repeats or moves parts of the chat")
    return rendered


def _ends_of_answers(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn]) -> dict[int, str]:
    """Return what the template writes after an answer, without white space at its end, by the answer's last part."""
    ends: dict[int, str] = {}
    number = 0
    for place, turn in enumerate(turns):
        number += len(turn.parts)
        if turn.role == ASSISTANT:
            ends[number - 1] = MARK.split(_render(tokenizer, turns[: place + 1]))[-1].rstrip()
    return ends


def _template_pieces(layout: Layout, text: str, end: str, *, is_first: bool, is_last: bool) -> list[Piece]:
    """Return a stretch of the template's text, of which the tokens of `end`, if it begins with it, are trained.

    What follows an answer's end at the end of the chat is left out: there is nothing to learn from it.
    """
    if not text.startswith(end):
        end = ""
    encoded = layout.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    trained = sum(stop <= len(end) for _, stop in encoded["offset_mapping"]) if end else 0
    bos = layout.bos_ids
    if is_first and bos and ids[: len(bos)] == bos:  # it is set anyhow
        ids = ids[len(bos) :]
    found = [Piece(STRUCTURE, True, ids[:trained])] if trained else []
    rest = ids[trained:] if not is_last else []
    return found + ([Piece(STRUCTURE, False, rest)] if rest else [])


def _without_template(layout: Layout, turns: Sequence[Turn]) -> list[Piece]:
    pieces: list[Piece] = []
    for number, turn in enumerate(turns):
        is_answer = turn.role == ASSISTANT
        between = layout.end_of_turn_ids if is_answer else layout.text_ids("\n")
        if number and between:
            pieces.append(Piece(STRUCTURE, False, between))
        for part in turn.parts:
            pieces += _part_pieces(layout, part, is_answer, pieces)
    return pieces


def _part_pieces(layout: Layout, part: Part, is_answer: bool, before: Sequence[Piece]) -> list[Piece]:
    """Return the piece of a part; none of a text without tokens."""
    if isinstance(part, Picture):
        return [Piece(IMAGE, is_answer, [], sum(piece.kind == IMAGE for piece in before))]
    ids = layout.text_ids(part)
    return [Piece(TEXT, is_answer, ids)] if ids else []


def _without_marks(text: str) -> str:
    return re.sub("[\ue000\ue001]", "", text)
