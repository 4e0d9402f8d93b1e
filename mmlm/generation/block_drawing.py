"""One batch of pictures whose grids the model chooses, drawn token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmlm.generation.block_grammar import BlockGrammar
from mmlm.generation.decoder import CachedDecoder
from mmlm.generation.guidance import Guidance
from mmlm.generation.prompts import Prompt
from mmlm.generation.sampling import RowSampler
from mmlm.layouts.base import Block

Slots = tuple[int, ...]


class _Choices:
    """What any of several rows may draw, and which of it each row may."""

    def __init__(self, grammar: BlockGrammar, slots: Slots, device: torch.device) -> None:
        self.ids = grammar.allowed(slots)
        self._members = {slot: torch.isin(self.ids, grammar.allowed((slot,))).to(device) for slot in slots}

    def forbidden(self, rows: Sequence[Slots]) -> Tensor:
        """Return which ids each row may not draw, (B, K) bool; a row that is complete may draw any."""
        every = tuple(self._members)
        return ~torch.stack([torch.stack([self._members[s] for s in row or every]).any(0) for row in rows])


def draw_blocks(
    model: PreTrainedModel,
    grammar: BlockGrammar,
    prompts: Sequence[Prompt],
    guidance: Guidance,
    sampler: RowSampler,
    after_step: Callable[[int, Tensor], None] | None = None,
    compile: bool = False,
) -> list[Tensor]:
    """Return the indices, (*grid) or (*grid, num_codebooks) int64 on the CPU, of B pictures.

    Rows go on in lockstep until the last block is complete; what a row draws does not depend on the others. Each step
    waits for the device, because what may come next depends on what came.

    Args:
        model, prompts, guidance, compile: as of `draw_pictures`.
        grammar: the blocks that may be drawn, in the layout of the model's processor.
        sampler: with B rows, and a random number for each token of the longest block.
        after_step: called with a row's number and its visual ids (n,) so far, after each of them.
    """
    layout = grammar.layout
    header = [layout.start_slot] if layout.start_slot >= 0 else []
    place = grammar.advance(grammar.start, header[0]) if header else grammar.start
    contexts = zip(*(guidance.contexts(prompt) for prompt in prompts), strict=True)
    rows = [prompt.ids(layout, header) for context in contexts for prompt in context]
    copies, steps = len(rows) // len(prompts), max(map(len, grammar.templates)) - len(header)
    decoder = CachedDecoder(model, rows, steps, layout.eos_id, compile=compile)
    places, drawn = [place] * len(prompts), [list(header) for _ in prompts]
    choices: dict[Slots, _Choices] = {}
    for step in range(steps):
        following = [grammar.slots(place) for place in places]
        slots = tuple(sorted({slot for row in following for slot in row}))
        if slots not in choices:
            choices[slots] = _Choices(grammar, slots, decoder.device)
        scores = guidance.combine(decoder.scores(choices[slots].ids).view(copies, len(prompts), -1))
        scores = scores.masked_fill(choices[slots].forbidden(following), -torch.inf)
        tokens = choices[slots].ids[sampler.choose(scores, step).cpu()].tolist()
        for number, (token, allowed) in enumerate(zip(tokens, following, strict=True)):
            if allowed:
                drawn[number].append(token)
                places[number] = grammar.advance(places[number], token)
                if after_step is not None and bool(layout.vocabulary.is_visual(torch.tensor(token))):
                    so_far = torch.tensor(drawn[number])
                    after_step(number, so_far[layout.vocabulary.is_visual(so_far)])
        if all(map(grammar.is_complete, places)):
            break
        decoder.feed(torch.tensor(tokens, device=decoder.device).repeat(copies)[:, None])
    found = []
    for place, ids in zip(places, drawn, strict=True):
        grid = grammar.grid(place)
        assert grid is not None  # a complete block is of one grid
        found.append(layout.block_indices(ids, Block(0, len(ids), grid)))
    return found
