from __future__ import annotations

import pytest
import torch

from mmlm.generation.block_grammar import BlockGrammar
from mmlm.layouts.base import Layout, MalformedSequenceError
from visual_tokenizer.errors import UserError

VISUAL = 150


def draw(grammar: BlockGrammar, ids: list[int], seed: int) -> list[int]:
    """Sample uniformly among what is allowed after the first tokens of a block, with no model."""
    generator = torch.Generator().manual_seed(seed)
    place, ids = walk(grammar, ids), list(ids)
    while not grammar.is_complete(place):
        allowed = grammar.allowed(grammar.slots(place))
        ids.append(int(allowed[torch.randint(len(allowed), (), generator=generator)]))
        place = grammar.advance(place, ids[-1])
    return ids


def walk(grammar: BlockGrammar, ids: list[int]):
    place = grammar.start
    for token in ids:
        place = grammar.advance(place, token)
    return place


@pytest.fixture
def emu3(build) -> Layout:
    return build({"type": "emu3"}, (2, 2, 3))


def test_every_block_of_its_grids_is_taken_and_no_other(emu3: Layout) -> None:
    grids = [(2, 3), (2, 12), (3, 2), (2, 2, 3)]
    grammar = BlockGrammar(emu3, grids)
    for grid in grids:
        block = emu3.block(torch.randint(16, grid)).tolist()
        place = walk(grammar, block)
        assert grammar.is_complete(place)
        assert grammar.grid(place) == grid
        for length in range(len(block)):
            assert not grammar.is_complete(walk(grammar, block[:length]))
        with pytest.raises(MalformedSequenceError, match="nothing: the block is complete"):
            grammar.advance(place, block[-1])
    with pytest.raises(MalformedSequenceError) as error:
        walk(grammar, emu3.block(torch.zeros(2, 4, dtype=torch.int64)).tolist())
    assert error.value.position == 3
    assert error.value.found == "'4' (52)"
    assert set(error.value.expected.split(" or ")) == {"'1' (49)", "'3' (51)", "'2' (50)"} - {"'2' (50)"}
    with pytest.raises(UserError, match="got none"):
        BlockGrammar(emu3, [])


def test_rows_of_a_batch_choose_their_own_size(emu3: Layout) -> None:
    grids = [(1, 2), (2, 2), (2, 1, 1), (1, 11)]
    grammar = BlockGrammar(emu3, grids)
    chosen = set()
    for seed in range(24):
        ids = draw(grammar, [], seed)
        (block,) = emu3.find_blocks(ids)
        assert (block.start, block.end) == (0, len(ids))
        chosen.add(block.grid)
    assert chosen == set(grids)


def test_the_opening_of_the_block_may_be_in_the_prompt(emu3: Layout) -> None:
    ids = draw(BlockGrammar(emu3, [(2, 2), (1, 2)]), emu3.header((2, 2)).tolist(), 0)
    assert [block.grid for block in emu3.find_blocks(ids)] == [(2, 2)]


def test_pictures_of_variable_length_end_where_they_like(build) -> None:
    layout = build({"type": "sequence", "min_length": 2, "max_length": 5}, (5,), books=2)
    grammar = BlockGrammar(layout, [(length,) for length in layout.lengths])
    lengths = set()
    for seed in range(40):
        ids = draw(grammar, [], seed)
        (block,) = layout.find_blocks(ids)
        lengths.add(block.grid[0])
        assert layout.block_indices(ids, block).shape == (block.grid[0], 2)
    assert lengths == {2, 3, 4, 5}


def test_only_blocks_that_fit_are_begun(emu3: Layout) -> None:
    grammar = BlockGrammar(emu3, [(1, 1), (2, 2)])
    assert grammar.shortest == 9
    assert grammar.start_within(9).fitting == (0,)
    assert grammar.is_complete(grammar.start_within(8))


@pytest.mark.parametrize(
    ("change", "position", "expected", "found"),
    [
        (lambda s: s[:-1], 6, "</img>", "end of the sequence"),
        (lambda s: s[:3] + s[-1:], 3, "2 to 4 positions", "1"),
        (lambda s: [*s[:3], 97, *s[3:5], *s[6:]], 3, "visual token", "'a'"),
        (lambda s: s[:-1] + [VISUAL] * 3 + s[-1:], 6, "</img>", "visual_00000"),
    ],
)
def test_malformed_sequences_of_variable_length(build, change, position, expected, found) -> None:
    layout = build({"type": "sequence", "min_length": 2, "max_length": 4}, (4,))
    good = [97, *layout.block(torch.zeros(4, dtype=torch.int64)).tolist()]
    assert layout.find_blocks(good)[0].grid == (4,)
    with pytest.raises(MalformedSequenceError) as error:
        layout.find_blocks(change(good))
    assert (error.value.position, expected in error.value.expected, found in error.value.found) == (
        position,
        True,
        True,
    )


def test_layouts_refuse_what_they_have_no_block_for(build) -> None:
    with pytest.raises(ValueError, match=r"grid_rank must be 1 \(sequence\), got 2"):
        build({"type": "sequence"}, (2, 3))
    with pytest.raises(ValueError, match="min_length"):
        build({"type": "sequence", "min_length": 5, "max_length": 4}, (4,))
    with pytest.raises(UserError, match="2 to 4 positions"):
        build({"type": "sequence", "min_length": 2, "max_length": 4}, (4,)).template((5,))
    assert list(build({"type": "sequence"}, (32,)).lengths) == [32]
    with pytest.raises(UserError, match="2 x 3"):
        build({"type": "llamagen"}, (2, 3)).template((3, 2))
    with pytest.raises(ValueError, match="rows and columns"):
        build({"type": "llamagen"}, (2, 2, 3))


def test_llamagen_is_the_prefix_and_the_raster(build) -> None:
    layout = build({"type": "llamagen"}, (2, 2))
    picture = torch.tensor([[3, 1], [0, 15]])
    sample = layout.caption_to_image("cat", layout.block(picture))
    bos, eos = layout.bos_ids[0], layout.eos_id
    assert sample.tolist() == [bos, 99, 97, 116, VISUAL + 3, VISUAL + 1, VISUAL, VISUAL + 15, eos]
    assert layout.prompt_for_image("cat", (2, 2)).tolist() == [bos, 99, 97, 116]
    assert layout.prompt_for_image(None, (2, 2)).tolist() == [bos]
    with pytest.raises(MalformedSequenceError) as error:
        layout.find_blocks(sample[:-2])
    assert error.value.found == "the end of the sequence"
    two = torch.cat([layout.block(picture), layout.block(picture.T)])
    assert [(b.start, b.end) for b in layout.find_blocks(two)] == [(0, 4), (4, 8)]


def test_clips_are_frames_with_ends_beside_pictures(emu3: Layout) -> None:
    clip = torch.arange(12).view(2, 2, 3)
    block = emu3.block(clip)
    start, eol, eof, end = (
        emu3.structural_ids[n] for n in ("<|image start|>", "<|extra_200|>", "<|extra_201|>", "<|image end|>")
    )
    rows = [[*range(VISUAL + 3 * row, VISUAL + 3 * row + 3), eol] for row in range(4)]
    size = [ord(c) for c in "2*3*2"]
    mark = emu3.structural_ids["<|image token|>"]
    assert block.tolist() == [start, *size, mark, *rows[0], *rows[1], eof, *rows[2], *rows[3], eof, end]
    picture = emu3.block(clip[0])
    ids = torch.cat([picture, torch.tensor([97]), block, picture])
    found = emu3.find_blocks(ids)
    assert [b.grid for b in found] == [(2, 3), (2, 2, 3), (2, 3)]
    assert torch.equal(emu3.block_indices(ids, found[1]), clip)
    without_eof = torch.cat([block[: 7 + 8], block[7 + 9 :]])
    with pytest.raises(MalformedSequenceError, match="extra_201"):
        emu3.find_blocks(without_eof)
