"""Tiny untrained merged models with pictures of 2 × 4 tokens, and a loop without a cache to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from mmlm.merging.merge import merge_vocabulary

SIZE = {"height": 16, "width": 32}


@pytest.fixture(scope="session")
def merge_tiny(make_codec, make_model, text_tokenizer) -> Callable:
    """Return a function of (layout, quantizer) that gives a merged model and processor."""

    def merge(layout="emu3", quantizer=None):
        torch.set_num_threads(1)
        codec = make_codec(quantizer=quantizer or {"type": "fsq", "levels": [4, 4, 2]})
        model = make_model(len(text_tokenizer) + 5, tied=False, initializer_range=0.3, max_position_embeddings=96)
        model, processor = merge_vocabulary(model, text_tokenizer, codec, layout=layout, pad_to_multiple_of=64)
        processor.image_processor.size = dict(SIZE)
        return model.eval(), processor

    return merge


@pytest.fixture(scope="session")
def merged(merge_tiny):
    return merge_tiny()


@pytest.fixture(scope="session")
def draw_slowly() -> Callable[..., Tensor]:
    """Return a function that draws one picture greedily with whole forward passes: no cache, padding or batch."""

    @torch.no_grad()
    def draw(model, processor, prompt: str, scale: float, grid: Sequence[int]) -> Tensor:
        layout, vocabulary = processor.layout, processor.vocabulary
        rows = [layout.prompt_for_image(prompt, grid), layout.prompt_for_image(None, grid)]
        visual = []
        for slot in layout.body(grid).tolist():
            conditional, unconditional = (model(row[None]).logits[0, -1] for row in rows)
            scores = unconditional + scale * (conditional - unconditional)
            token = slot
            if slot < 0:
                allowed = vocabulary.visual_ids(-1 - slot)
                token = int(allowed[scores[allowed].argmax()])
                visual.append(token)
            rows = [torch.cat([row, torch.tensor([token])]) for row in rows]
        shape = [*grid] if vocabulary.num_codebooks == 1 else [*grid, vocabulary.num_codebooks]
        return vocabulary.ids_to_indices(torch.tensor(visual).view(shape))

    return draw
