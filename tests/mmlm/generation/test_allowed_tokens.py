from __future__ import annotations

import torch

from mmlm.generation.block_grammar import BlockGrammar
from mmlm.generation.drawing import codebook_ids
from mmlm.generation.writing import text_ids_of

GRID = (2, 4)


def allowed_along(layout, grid) -> list[set[int]]:
    """Return what may stand at each place of the body of a block with one grid."""
    grammar = BlockGrammar(layout, [grid])
    place, found = grammar.start, []
    for _ in range(len(layout.template(grid))):
        ids = grammar.allowed(grammar.slots(place)).tolist()
        found.append(set(ids))
        place = grammar.advance(place, ids[-1])
    assert grammar.is_complete(place)
    return found[len(layout.header(grid)) :]


def test_each_place_allows_exactly_the_layouts_tokens(merged):
    _, processor = merged
    layout = processor.layout
    visual = set(processor.vocabulary.visual_ids().tolist())
    end_of_row, end_of_frame, end = layout.template(GRID)[[-3, -2, -1]].tolist()
    row = [visual] * 4 + [{end_of_row}]
    assert allowed_along(layout, GRID) == [*row, *row, {end_of_frame}, {end}]


def test_several_codebooks_take_turns(merge_tiny):
    _, processor = merge_tiny(quantizer={"type": "vq", "codebook_size": 8, "code_dim": 4})
    vocabulary = type(processor.vocabulary)(start=processor.vocabulary.start, size=4, num_codebooks=2)
    layout = type(processor.layout)(processor.layout.config, processor.tokenizer, vocabulary)
    first, second = (set(ids.tolist()) for ids in codebook_ids(vocabulary))
    assert allowed_along(layout, GRID)[:4] == [first, second] * 2


def test_dead_rows_are_never_allowed(merged):
    _, processor = merged
    dead = set(processor.dead_ids.tolist())
    assert dead
    assert not any(dead & allowed for allowed in allowed_along(processor.layout, GRID))


def test_text_is_text_and_eos(merged):
    model, processor = merged
    layout, rows = processor.layout, processor.merge.rows
    kept = torch.isin(torch.arange(rows), text_ids_of(model, processor))
    ids = torch.arange(rows)
    assert bool(kept[layout.eos_id])
    assert not kept[layout.is_picture_token(ids)].any()
    assert not kept[processor.dead_ids].any()
    assert not kept[[i for i in processor.tokenizer.all_special_ids if i != layout.eos_id]].any()
    assert kept[torch.tensor(processor.text_ids("a red dog under the roof"))].all()
