from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessorList

from mmlm.generation.constraints import LayoutConstraint, TextConstraint

GRID = (2, 4)


def allowed_after(constraint: LayoutConstraint, length: int, rows: int) -> set[int]:
    scores = constraint(torch.zeros(2, length, dtype=torch.int64), torch.zeros(2, rows))
    assert torch.equal(scores[0], scores[1])
    return set(scores[0].isfinite().nonzero().flatten().tolist())


def test_each_place_allows_exactly_the_layouts_tokens(merged):
    _, processor = merged
    layout, rows = processor.layout, processor.merge.rows
    constraint = LayoutConstraint(layout, GRID, prompt_length=7)
    visual = set(processor.vocabulary.visual_ids().tolist())
    end_of_row, end_of_frame, end = layout.template(GRID)[[-3, -2, -1]].tolist()
    found = [allowed_after(constraint, 7 + step, rows) for step in range(14)]
    row = [visual] * 4 + [{end_of_row}]
    assert found == [*row, *row, {end_of_frame}, {end}, {layout.eos_id}, {layout.eos_id}]


def test_several_codebooks_take_turns(merge_tiny):
    _, processor = merge_tiny(quantizer={"type": "vq", "codebook_size": 8, "code_dim": 4})
    vocabulary = type(processor.vocabulary)(start=processor.vocabulary.start, size=4, num_codebooks=2)
    layout = type(processor.layout)(processor.layout.config, processor.tokenizer, vocabulary)
    constraint = LayoutConstraint(layout, GRID, prompt_length=0)
    first, second = (set(vocabulary.visual_ids(book).tolist()) for book in range(2))
    assert [allowed_after(constraint, step, processor.merge.rows) for step in range(4)] == [first, second] * 2


def test_dead_rows_are_never_allowed(merged):
    _, processor = merged
    dead = set(processor.dead_ids.tolist())
    assert dead
    constraint = LayoutConstraint(processor.layout, GRID, prompt_length=0)
    for step in range(12):
        assert not dead & allowed_after(constraint, step, processor.merge.rows)


def test_a_sequence_shorter_than_the_prompt_is_refused(merged):
    constraint = LayoutConstraint(merged[1].layout, GRID, prompt_length=5)
    with pytest.raises(ValueError, match="prompt_length is 5, but a sequence has only 4"):
        constraint(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 10))


def test_it_works_alone_in_generate(merged):
    model, processor = merged
    prompt = processor.prompt_for_image("a red dog", GRID)[None]
    constraint = LayoutConstraint(processor.layout, GRID, prompt.shape[1])
    torch.manual_seed(0)
    config = GenerationConfig(do_sample=True, temperature=2.0, max_new_tokens=20, eos_token_id=processor.layout.eos_id)
    config.pad_token_id = processor.layout.eos_id
    ids = model.generate(prompt, generation_config=config, logits_processor=LogitsProcessorList([constraint]))
    assert [block.grid for block in processor.layout.find_blocks(ids[0])] == [GRID]
    assert int(ids[0, -1]) == processor.layout.eos_id


def test_text_constraint_leaves_text_and_eos(merged):
    _, processor = merged
    rows, layout = processor.merge.rows, processor.layout
    constraint = TextConstraint(layout, rows, processor.merge.dead_ranges)
    kept = constraint(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, rows))[0].isfinite()
    ids = torch.arange(rows)
    assert bool(kept[layout.eos_id])
    assert not kept[layout.is_picture_token(ids)].any()
    assert not kept[processor.dead_ids].any()
    assert not kept[[i for i in processor.tokenizer.all_special_ids if i != layout.eos_id]].any()
    assert kept[torch.tensor(processor.text_ids("a red dog under the roof"))].all()
