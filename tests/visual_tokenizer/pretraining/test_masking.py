import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visual_tokenizer.pretraining.masking import BlockMasking


def blocks_of(mask):
    """Return the sizes of the connected parts of a mask, edges touching."""
    left, sizes = {tuple(place) for place in mask.nonzero().tolist()}, []
    while left:
        todo, size = [left.pop()], 0
        while todo:
            row, column = todo.pop()
            size += 1
            for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if near in left:
                    left.remove(near)
                    todo.append(near)
        sizes.append(size)
    return sizes


def test_the_papers_grid_hides_75_of_196_patches_and_never_more():
    masking = BlockMasking((14, 14), seed=3)
    counts = np.array([int(masking(sample).sum()) for sample in range(2000)])
    assert (masking.masked_patches, masking.min_block_patches) == (75, 16)
    assert counts.max() == 75
    assert (counts == 75).mean() > 0.5
    assert 0.37 < counts.mean() / 196 <= 75 / 196


def test_every_patch_is_hidden_and_those_in_the_middle_more_often():
    masking = BlockMasking((14, 14))
    share = torch.stack([masking(sample) for sample in range(2000)]).float().mean(0)
    assert share.min() > 0.015
    assert share[5:9, 5:9].mean() > 5 * share[[0, 0, -1, -1], [0, -1, 0, -1]].mean()
    assert torch.allclose(share, share.T, atol=0.08)
    assert torch.allclose(share, share.flip(0), atol=0.08)


def test_hidden_patches_lie_in_blocks_of_the_smallest_size_or_more():
    masking = BlockMasking((14, 14))
    largest = [max(blocks_of(masking(sample))) for sample in range(300)]
    assert min(largest) >= 12  # 16 in area before its sides are rounded
    scattered = [len(blocks_of(masking(sample))) for sample in range(300)]
    assert np.mean(scattered) < 3  # 75 patches drawn one by one fall into about 20 parts


def test_a_first_block_has_the_area_and_the_aspect_that_were_asked_for():
    masking = BlockMasking((14, 14), masked_patches=40, min_block_patches=40, min_aspect=0.5)
    for sample in range(200):
        places = masking(sample).nonzero()
        if len(places) == 0:
            continue
        first = places[0]
        height, width = (places.max(0).values - first + 1).tolist()
        if height * width != len(places):
            continue  # several blocks
        assert 30 <= height * width <= 40
        assert 0.4 <= height / width <= 2.5


def test_a_mask_depends_on_seed_and_sample_alone():
    masking = BlockMasking((8, 8), seed=1)
    first = masking(5)
    torch.manual_seed(9)
    assert torch.equal(first, BlockMasking((8, 8), seed=1)(5))
    others = torch.stack([masking(sample) for sample in range(6, 40)])
    assert not (others == first).flatten(1).all(1).any()
    assert not torch.equal(first, BlockMasking((8, 8), seed=2)(5))


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(2, 20), columns=st.integers(2, 20), sample=st.integers(0, 1000))
def test_any_grid_hides_at_most_two_fifths_and_something(rows, columns, sample):
    masking = BlockMasking((rows, columns))
    mask = masking(sample)
    assert mask.shape == (rows, columns)
    assert int(mask.sum()) <= masking.masked_patches <= max(1, 0.4 * rows * columns + 0.5)


def test_wrong_counts_are_named():
    with pytest.raises(ValueError, match=r"masking.masked_patches must be in 1 … 15 on a grid of 4 × 4.*got 16"):
        BlockMasking((4, 4), masked_patches=16)
    with pytest.raises(ValueError, match=r"masking.min_block_patches must be in 1 … 6 .*got 7"):
        BlockMasking((4, 4), masked_patches=6, min_block_patches=7)
