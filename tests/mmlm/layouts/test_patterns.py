from __future__ import annotations

import datasets
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmlm.codebook_patterns.base import PatternConfig
from mmlm.data.document_sequences import DocumentSequences
from mmlm.data.pair_shards import PairRows
from mmlm.documents.pictures import Pictures, PicturesConfig
from mmlm.generation.previews import steps_of_rows
from mmlm.layouts.base import LayoutConfig
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.data.sources.base import SourceConfig

VISUAL, SIZE = 150, 16


def arrange(kind: str, positions: int, books: int) -> list[int | None]:
    return PatternConfig.family.build({"type": kind}).arrange(positions, books)


def test_published_orders() -> None:
    assert PatternConfig.family.names() == ["coarse_first", "delay", "flattened"]
    assert arrange("flattened", 2, 3) == [0, 1, 2, 0, 1, 2]
    assert arrange("coarse_first", 2, 3) == [0, 0, 1, 1, 2, 2]
    # Copet et al., figure 1: level k is shifted by k steps
    assert arrange("delay", 3, 2) == [0, None, 0, 1, 0, 1, None, 1]


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(["flattened", "coarse_first", "delay"]), positions=st.integers(1, 9), books=st.integers(1, 4)
)
def test_every_code_has_one_place(kind: str, positions: int, books: int) -> None:
    places = arrange(kind, positions, books)
    assert [places.count(book) for book in range(books)] == [positions] * books
    empty = places.count(None)
    assert empty == (books * (books - 1) if kind == "delay" else 0)


def test_delay_block_is_the_shifted_matrix(build) -> None:
    layout = build({"type": "sequence", "pattern": {"type": "delay"}}, (3,), books=2)
    codes = torch.tensor([[1, 11], [2, 12], [3, 13]])
    empty = layout.structural_ids["<|delay|>"]
    begin, end = layout.start_id, layout.end_id
    first, second = VISUAL, VISUAL + SIZE
    steps = [first + 1, empty, first + 2, second + 11, first + 3, second + 12, empty, second + 13]
    block = layout.block(codes)
    assert block.tolist() == [begin, *steps, end]
    found = layout.find_blocks(torch.cat([torch.tensor([65]), block]))
    assert [(b.start, b.end, b.grid) for b in found] == [(1, 11, (3,))]
    assert torch.equal(layout.block_indices(block, layout.find_blocks(block)[0]), codes)


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(["emu3", "chameleon", "llamagen", "sequence"]),
    pattern=st.sampled_from(["flattened", "coarse_first", "delay"]),
    books=st.integers(1, 3),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    seed=st.integers(0, 99),
)
def test_pictures_come_back_in_every_pattern(build, kind, pattern, books, size, seed) -> None:
    grid = (size[0] * size[1],) if kind == "sequence" else size
    layout = build({"type": kind, "pattern": {"type": pattern}}, grid, books)
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(SIZE, (2, *grid, books) if books > 1 else (2, *grid), generator=generator)
    blocks = layout.blocks(pictures)
    assert torch.equal(blocks[1], layout.block(pictures[1]))
    ids = torch.cat([blocks[0], blocks[1], torch.tensor([97])])
    found = layout.find_blocks(ids)
    assert [block.grid for block in found] == [grid, grid]
    assert torch.equal(torch.stack([layout.block_indices(ids, block) for block in found]), pictures)
    visual = blocks[:, layout.template(grid) < 0]
    assert torch.equal(layout.indices_of(visual, grid), pictures)
    # the template says of each place which codebook may stand there
    slots = layout.template(grid)
    assert torch.equal(layout.vocabulary.codebook_of(blocks[0])[slots < 0], -1 - slots[slots < 0])


def test_a_row_is_complete_when_its_last_code_is_there(build) -> None:
    assert steps_of_rows(build({"type": "emu3"}, (2, 3)), (2, 3)) == [3, 7]  # an EOL stands between
    assert steps_of_rows(build({"type": "llamagen"}, (2, 3)), (2, 3)) == [3, 6]
    coarse = build({"type": "chameleon", "pattern": {"type": "coarse_first"}}, (2, 3), books=2)
    assert steps_of_rows(coarse, (2, 3)) == [9, 12]
    assert steps_of_rows(build({"type": "emu3"}, (2, 1, 2)), (2, 1, 2)) == [2, 6]


def test_the_patterns_token_belongs_to_the_layout(build) -> None:
    section = {"type": "emu3", "pattern": {"type": "delay", "empty_token": "<|extra_200|>"}}
    with pytest.raises(ValueError, match="different names"):
        LayoutConfig.family.config(section)
    config = LayoutConfig.family.config({"type": "chameleon", "pattern": {"type": "delay"}})
    assert config.structural_tokens() == ["<racm3:break>", "<eoss>", "<|delay|>"]
    assert LayoutConfig.family.config(config.to_dict()) == config


def test_training_sequences_follow_the_pattern(build) -> None:
    layout = build({"type": "chameleon", "pattern": {"type": "delay"}}, (2, 2), books=2)
    indices = torch.randint(SIZE, (3, 2, 2, 2), generator=torch.Generator().manual_seed(0))
    columns = {"caption": ["a", "bc", ""], "indices": indices.flatten(1).tolist(), "grid": [[2, 2]] * 3}
    source = SourceConfig.family.config({"type": "openmoji"})  # it is not read
    whole = Pictures(PicturesConfig(source=source, image_to_text_fraction=0.0, caption_dropout=0.0))
    pairs = DocumentSequences(PairRows(datasets.Dataset.from_dict(columns), layout), layout, whole, shuffle=False)
    for row, caption in enumerate(columns["caption"]):
        wanted = layout.caption_to_image(caption, layout.block(indices[row]))
        assert pairs[row]["input_ids"].tolist() == wanted.tolist()


def test_merged_models_draw_and_decode_with_delay(make_model, make_codec, text_tokenizer, tmp_path) -> None:
    from mmlm.generation.images import generate_indices
    from mmlm.merging.merge import merge_vocabulary
    from mmlm.recipes.sampling import PictureSampling

    quantizer = {"type": "residual", "depth": 2, "base": {"type": "vq", "codebook_size": 16, "code_dim": 4}}
    model, processor = merge_vocabulary(
        make_model(len(text_tokenizer)),
        text_tokenizer,
        make_codec(quantizer=quantizer),
        layout={"type": "chameleon", "pattern": {"type": "delay"}},
    )
    indices = generate_indices(model, processor, ["a red dog"], PictureSampling(guidance_scale=2.0), grid=(4, 4))
    assert indices.shape == (1, 4, 4, 2)
    assert indices.max() < 16
    processor.save_pretrained(tmp_path)
    again = MultimodalProcessor.from_pretrained(tmp_path)
    block = processor.image_block(indices[0])
    assert torch.equal(again.image_block(indices[0]), block)
    assert again.decode_images(block)[0][0].tobytes() == processor.decode_indices(indices)[0].tobytes()
