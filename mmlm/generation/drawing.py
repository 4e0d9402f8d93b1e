"""One batch of pictures of a known grid, drawn token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmlm.generation.decoder import CachedDecoder
from mmlm.generation.guidance import Guidance
from mmlm.generation.prompts import Prompt
from mmlm.generation.sampling import RowSampler
from mmlm.layouts.base import Layout
from mmlm.vocabulary import VisualVocabulary


def codebook_ids(vocabulary: VisualVocabulary) -> list[Tensor]:
    """Return the ids (K,) int64 of each codebook in ascending order, so that draws do not depend on a table's order."""
    return [vocabulary.visual_ids(book).sort().values for book in range(vocabulary.num_codebooks)]


def draw_pictures(
    model: PreTrainedModel,
    layout: Layout,
    grid: Sequence[int],
    prompts: Sequence[Prompt],
    guidance: Guidance,
    sampler: RowSampler,
    after_step: Callable[[int, Tensor], None] | None = None,
    compile: bool = False,
) -> Tensor:
    """Return the visual ids (B, V) int64 of B pictures, in the order of their slots.

    Tokens that the layout fixes are not asked for: they are fed together with the one before them. Nothing waits for
    the device.

    Args:
        model: merged causal LM in eval mode.
        layout: the one of its processor.
        grid: token grid of every picture.
        prompts: one a picture.
        guidance: its contexts are m · B rows of one batch.
        sampler: with B rows.
        after_step: called after each visual token with the number of the body's tokens so far, fixed ones too, and
            the visual ids (B, n) so far.
        compile: see `CachedDecoder`.
    """
    slots = layout.body(grid).tolist()
    steps = 1 + max(place for place, slot in enumerate(slots) if slot < 0)  # what follows is fixed
    header = layout.header(grid)
    contexts = zip(*(guidance.contexts(prompt) for prompt in prompts), strict=True)
    rows = [prompt.ids(layout, header) for context in contexts for prompt in context]
    copies = len(rows) // len(prompts)
    decoder = CachedDecoder(model, rows, steps, layout.eos_id, compile=compile)
    books = codebook_ids(layout.vocabulary)
    on_device = [ids.to(decoder.device) for ids in books]
    drawn = torch.empty(len(prompts), sum(slot < 0 for slot in slots), dtype=torch.int64, device=decoder.device)
    tokens = torch.empty(len(rows), steps, dtype=torch.int64, device=decoder.device)
    fixed = torch.tensor(slots[:steps], device=decoder.device)
    tokens[:] = fixed.clamp(min=0)
    count = fed = 0
    for step, slot in enumerate(slots[:steps]):
        if slot >= 0:
            continue
        if fed < step:
            decoder.feed(tokens[:, fed:step])
            fed = step
        scores = decoder.scores(books[-1 - slot])
        scores = guidance.combine(scores.view(copies, len(prompts), -1))
        chosen = on_device[-1 - slot][sampler.choose(scores, step)]
        drawn[:, count] = chosen
        tokens[:, step] = chosen.repeat(copies)
        count += 1
        if after_step is not None:
            after_step(step + 1, drawn[:, :count])
    return drawn
