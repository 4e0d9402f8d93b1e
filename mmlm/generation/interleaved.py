"""Text and pictures in one answer; the model itself says where a picture begins."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from mmlm.generation.block_grammar import BlockGrammar
from mmlm.generation.decoder import CachedDecoder
from mmlm.generation.guidance import Guidance, choose_guidance
from mmlm.generation.loop import evaluation_mode, most_positions
from mmlm.generation.previews import OnRows, previews_of
from mmlm.generation.prompts import Prompt, Segment, read_prompts
from mmlm.generation.sampling import RowSampler, row_uniforms
from mmlm.generation.writing import text_ids_of
from mmlm.layouts.base import Grid
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.sampling import PictureSampling, Sampling
from visual_tokenizer.errors import UserError


class Ending(NamedTuple):
    """How an answer ended; what the generator returns (`StopIteration.value`)."""

    prompt_tokens: int
    """Tokens of the prompt, BOS included."""
    new_tokens: int
    """Tokens of the answer, without EOS."""
    has_ended: bool
    """Whether the model drew EOS; else there was no room left."""


def generate_interleaved(
    model: PreTrainedModel,
    processor: MultimodalProcessor,
    prompt: Any,
    *,
    max_new_tokens: int = 1024,
    max_images: int = 4,
    open_image: bool = False,
    text_temperature: float = 0.7,
    text_top_k: int = 0,
    text_top_p: float = 0.9,
    guidance_scale: float | None = None,
    image_guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    grids: Sequence[Grid] | None = None,
    end_turn: bool = False,
    on_rows: OnRows | None = None,
) -> Generator[str | Image.Image, None, Ending]:
    """Yield the model's answer to text and pictures: stretches of text as they are written, and pictures, until EOS.

    Outside of pictures only text, EOS and the token that opens a picture can be drawn; inside, only what the layout
    allows there. A picture is only begun where a whole one fits, and none is cut off. Guidance leads each picture away
    from what `mmlm.generation.guidance` says; all that the answer holds so far belongs to its prompt.

    Args:
        model: merged causal LM; while the generator is not exhausted or closed, it is in eval mode.
        processor: the one of the same folder, with its visual tokenizer.
        prompt: a text, or a list of texts and pictures; also `Segment`s of token ids.
        max_new_tokens: most tokens of the answer, those of pictures included; also no more than the model's positions.
        max_images: most pictures of the answer; 0 for text alone.
        open_image: begin the answer with a picture.
        text_temperature: 0 or more; 0 takes the most likely token. This and the next two are for text; the defaults are
            those of Chameleon's published code.
        text_top_k: sample from that many of the most likely tokens; 0 is off.
        text_top_p: sample from the most likely tokens that together have this probability.
        guidance_scale: this and the next five are for pictures: see `generate_images`.
        seed: any whole number.
        grids: token grids that a picture may have, where the layout writes its size or has an end token; by default
            the image processor's, or all of a layout's `lengths`.
        end_turn: end the prompt with the layout's `end_of_turn_ids`.
        on_rows: called with each picture so far, its rows done, and its number in the answer.

    Raises:
        UserError: a setting out of its range, scores that are NaN, no room for the answer, no visual tokenizer, or
            model and processor do not belong together.
    """
    writer = _Writer(model, processor, read_prompts(processor, [prompt])[0], max_new_tokens, seed, end_turn)
    text = writer.sampler(Sampling(temperature=text_temperature, top_k=text_top_k, top_p=text_top_p))
    drawing = PictureSampling.over(
        processor.sampling,
        guidance_scale=guidance_scale,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        image_guidance_scale=image_guidance_scale,
        negative_prompt=negative_prompt,
    )
    pencil = writer.sampler(drawing)
    guidance = choose_guidance(processor, drawing)
    if max_images < 0:
        raise UserError(f"max_images must be 0 or more, got {max_images}")
    if open_image and not max_images:
        raise UserError("open_image begins the answer with a picture: max_images must be 1 or more, got 0")
    slot = processor.layout.start_slot
    opener = slot if slot >= 0 else None  # None: a block begins with a visual token
    if open_image and opener is None:
        raise UserError(f"{processor.layout.config.type!r} has no token that opens a picture: use generate_images")
    grammar = BlockGrammar(processor.layout, grids or _usual_grids(processor)) if opener is not None else None
    if grammar is not None and grammar.shortest > writer.room and open_image:
        raise UserError(f"a picture has {grammar.shortest} tokens, but max_new_tokens leaves {writer.room}")
    text_ids = text_ids_of(model, processor)
    with_opener = text_ids if opener is None else torch.cat([text_ids, torch.tensor([opener])]).sort().values
    images = 0
    has_ended = False
    with evaluation_mode(model, *([] if processor.codec is None else [processor.codec])):
        while writer.room > 0:
            may_open = grammar is not None and images < max_images and grammar.shortest <= writer.room
            if open_image and images == 0 and may_open and opener is not None:
                token = opener
            else:
                token = writer.choose(text, with_opener if may_open else text_ids)
            if token == processor.layout.eos_id:
                has_ended = True
                break
            if grammar is not None and token == opener:
                yield from writer.flush()
                yield writer.draw(grammar, guidance, pencil, on_rows, images)
                images += 1
            else:
                yield from writer.write(token)
        yield from writer.flush()
        text.check_sound()
        pencil.check_sound()
    return Ending(len(writer.prompt_ids), writer.count, has_ended)


def _usual_grids(processor: MultimodalProcessor) -> list[Grid]:
    lengths = getattr(processor.layout, "lengths", None)
    is_free = processor.codec is not None and processor.codec.has_variable_length
    return processor.grids if lengths is None or is_free else [(length,) for length in lengths]


class _Writer:
    """The sequence of one answer: its tokens, what they say, and the decoder that holds them."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: MultimodalProcessor,
        prompt: Prompt,
        max_new_tokens: int,
        seed: int,
        end_turn: bool,
    ) -> None:
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be 1 or more, got {max_new_tokens}")
        processor.check_model(model)
        self.model, self.processor, self.layout = model, processor, processor.layout
        self.segments = list(prompt.segments)
        if end_turn:
            self.segments.append(Segment(torch.tensor(self.layout.end_of_turn_ids, dtype=torch.int64), False))
        ids = Prompt(tuple(self.segments), prompt.name).ids(self.layout)
        if not len(ids):
            raise UserError("the prompt has no tokens, and the text tokenizer has no BOS to begin with")
        limit = most_positions(model)
        self.room = max_new_tokens if limit is None else min(max_new_tokens, limit - len(ids))
        if self.room < 1:
            raise UserError(f"the prompt has {len(ids)} tokens, and the model {limit} positions: no room is left")
        self.name, self.seed, self.steps = prompt.name, seed, self.room
        self.count = 0
        self._decoder: CachedDecoder | None = None
        self.prompt_ids = ids
        self._pending: list[int] = []
        self._shown = ""
        self._text: list[int] = []

    def sampler(self, sampling: Sampling) -> RowSampler:
        """Return a sampler whose random numbers are the answer's, one a token."""
        uniforms = row_uniforms(self.seed, self.name, 0, self.steps)[None].to(self.model.device)
        return RowSampler(uniforms, sampling)

    def _current(self) -> CachedDecoder:
        """Return the decoder after all tokens so far."""
        if self._decoder is None:
            self._decoder = CachedDecoder(self.model, [self.prompt_ids], self.steps, self.layout.eos_id)
        if self._pending:
            self._decoder.feed(torch.tensor([self._pending], device=self._decoder.device))
            self._pending = []
        return self._decoder

    def choose(self, sampler: RowSampler, allowed: Tensor) -> int:
        """Return the next token."""
        return int(allowed[int(sampler.choose(self._current().scores(allowed), self.count))])

    def write(self, token: int) -> Iterator[str]:
        """Append a token of text and yield what it adds; nothing while a character is not complete."""
        self._pending.append(token)
        self.room -= 1
        self.count += 1
        self._text.append(token)
        whole = str(self.processor.tokenizer.decode(self._text))
        if whole.endswith("\ufffd"):
            return
        new, self._shown = whole[len(self._shown) :], whole
        if new:
            yield new

    def flush(self) -> Iterator[str]:
        """Close a stretch of text and yield what is left of it."""
        if not self._text:
            return
        whole = str(self.processor.tokenizer.decode(self._text))
        if new := whole[len(self._shown) :]:
            yield new
        self.segments.append(Segment(torch.tensor(self._text, dtype=torch.int64), False))
        self._text, self._shown = [], ""

    def draw(
        self, grammar: BlockGrammar, guidance: Guidance, sampler: RowSampler, on_rows: OnRows | None, number: int
    ) -> Image.Image:
        """Append a whole block and return its picture."""
        prompts = guidance.contexts(Prompt(tuple(self.segments), self.name))
        place = grammar.advance(grammar.start_within(self.room), self.layout.start_id)
        drawn = [self.layout.start_id]
        if len(prompts) == 1:
            decoder, fed = self._current(), 0
        else:
            rows = [prompt.ids(self.layout, drawn) for prompt in prompts]
            decoder, fed = CachedDecoder(self.model, rows, self.room - 1, self.layout.eos_id), 1
        show: Callable[[int, Tensor], None] | None = None
        allowed: dict[tuple[int, ...], Tensor] = {}
        while slots := grammar.slots(place):
            if len(slots) == 1 and slots[0] >= 0:
                token = slots[0]
            else:
                if fed < len(drawn):
                    decoder.feed(torch.tensor([drawn[fed:]] * len(prompts), device=decoder.device))
                    fed = len(drawn)
                ids = allowed.setdefault(slots, grammar.allowed(slots))
                scores = guidance.combine(decoder.scores(ids)[:, None])
                token = int(ids[int(sampler.choose(scores, self.count + len(drawn)))])
            drawn.append(token)
            place = grammar.advance(place, token)
            if on_rows is not None and (grid := grammar.grid(place)) is not None:
                show = show or previews_of(self.processor, grid, 1, number, on_rows)
                so_far = torch.tensor(drawn)
                is_visual = self.layout.vocabulary.is_visual(so_far)
                show(len(drawn) - len(self.layout.header(grid)), so_far[is_visual][None])
        block = torch.tensor(drawn, dtype=torch.int64)
        self.segments.append(Segment(block, True))
        self._pending += drawn[fed:] if decoder is self._decoder else drawn
        self.room -= len(drawn)
        self.count += len(drawn)
        image: Image.Image = self.processor.decode_images(block)[0][0]
        return image


def join_pieces(pieces: Iterable[str | Image.Image]) -> list[str | Image.Image]:
    """Return the pieces of `generate_interleaved` with neighbouring texts joined."""
    joined: list[str | Image.Image] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
