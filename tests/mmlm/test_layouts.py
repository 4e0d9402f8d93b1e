from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AddedToken, Emu3ImageProcessor, Emu3Processor, PreTrainedTokenizerFast

from mmlm.layouts.base import Layout, LayoutConfig, MalformedSequenceError
from mmlm.layouts.chameleon import published_table
from mmlm.vocabulary import VisualVocabulary
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import ConfigError

EMU3 = ["<|image start|>", "<|image end|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>"]
BOI, EOI, IMG, EOL, EOF = range(130, 135)
VISUAL = 140


def ascii_tokenizer() -> PreTrainedTokenizerFast:
    """Every ASCII character is its own id; then the published structural names; visual tokens from 140."""
    backend = Tokenizer(models.BPE(vocab={chr(code): code for code in range(128)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    names = [*EMU3, "<racm3:break>", "<eoss>", "<image>", "<pad>", "<gap>"]
    names += [f"<|visual_{index:05d}|>" for index in range(128)]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.pad_token = "<pad>"
    return tokenizer


TOKENIZER = ascii_tokenizer()


def build(section: dict, grid: tuple[int, ...] = (2, 3), books: int = 1) -> Layout:
    vocabulary = VisualVocabulary(start=VISUAL, size=64, num_codebooks=books)
    config = LayoutConfig.family.config(section).for_grid(grid)
    return LayoutConfig.family.build(config, tokenizer=TOKENIZER, vocabulary=vocabulary)


def ids(text: str) -> list[int]:
    return [ord(character) for character in text]


def test_known_layouts_are_the_files() -> None:
    assert LayoutConfig.family.names() == ["chameleon", "emu3", "llamagen", "sequence"]
    with pytest.raises(ConfigError, match="image_start_token"):
        LayoutConfig.family.config({"type": "emu3", "image_start": "x"})


def test_emu3_block_is_exactly_the_published_one() -> None:
    layout = build({"type": "emu3"})
    assert TOKENIZER.convert_tokens_to_ids(EMU3) == [BOI, EOI, IMG, EOL, EOF]
    block = layout.block(torch.tensor([[10, 11, 12], [13, 14, 15]]))
    rows = [VISUAL + 10, VISUAL + 11, VISUAL + 12, EOL, VISUAL + 13, VISUAL + 14, VISUAL + 15, EOL]
    assert block.tolist() == [BOI, *ids("2*3"), IMG, *rows, EOF, EOI]
    template = layout.template((2, 3))
    assert template.tolist() == [BOI, *ids("2*3"), IMG, -1, -1, -1, EOL, -1, -1, -1, EOL, EOF, EOI]
    assert layout.header((2, 3)).tolist() == [BOI, *ids("2*3"), IMG]
    assert layout.body((2, 3)).tolist() == [-1, -1, -1, EOL, -1, -1, -1, EOL, EOF, EOI]


def test_emu3_block_has_the_token_order_of_the_transformers_processor() -> None:
    tokenizer = ascii_tokenizer()
    tokens = {
        "image_token": "<image>",
        "boi_token": EMU3[0],
        "eoi_token": EMU3[1],
        "image_wrapper_token": EMU3[2],
        "eof_token": EMU3[4],
    }
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    published = Emu3Processor(Emu3ImageProcessor(), tokenizer)
    text = published.replace_image_token({"image_sizes": [(16, 24)]}, 0)
    theirs = tokenizer.encode(text, add_special_tokens=False)
    template = build({"type": "emu3"}).template((2, 3))
    placeholder = tokenizer.convert_tokens_to_ids("<image>")
    # their model fills the placeholders with visual tokens and the row ends
    ours = torch.where((template < 0) | (template == EOL), placeholder, template)
    assert ours.tolist() == theirs


def test_chameleon_block_has_no_size_and_no_row_ends() -> None:
    layout = build({"type": "chameleon"})
    begin, end = TOKENIZER.convert_tokens_to_ids(["<racm3:break>", "<eoss>"])
    block = layout.block(torch.tensor([[1, 2, 3], [4, 5, 6]]))
    assert block.tolist() == [begin, *range(VISUAL + 1, VISUAL + 7), end]
    with pytest.raises(UserError, match="2 x 3"):
        layout.template((3, 2))


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(["emu3", "chameleon"]),
    books=st.integers(1, 2),
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3),
    flat=st.booleans(),
    seed=st.integers(0, 99),
)
def test_what_is_built_is_found_again(kind: str, books: int, sizes: list, flat: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    grids = [(size[0] * size[1],) if flat else size for size in sizes]
    grids = [grids[0]] * len(grids) if kind == "chameleon" else grids
    layout = build({"type": kind}, grids[0], books)
    pictures = [torch.randint(64, (*grid, books) if books > 1 else grid, generator=generator) for grid in grids]
    parts, places, length = [torch.tensor(ids("text "))], [], 5
    for picture in pictures:
        block = layout.block(picture)
        assert len(block) == len(layout.template(grids[0] if kind == "chameleon" else grids[len(places)]))
        parts += [block, torch.tensor(ids("and"))]
        places.append((length, length + len(block)))
        length += len(block) + 3
    sequence = torch.cat(parts)
    blocks = layout.find_blocks(sequence)
    assert [(block.start, block.end) for block in blocks] == places
    assert [block.grid for block in blocks] == grids
    for block, picture in zip(blocks, pictures, strict=True):
        assert torch.equal(layout.block_indices(sequence, block), picture)


@pytest.mark.parametrize(
    ("change", "position", "expected", "found"),
    [
        (lambda s: s[:-1], 15, "image end", "end of the sequence"),
        (lambda s: s[:4], 4, "size as text", "end of the sequence"),
        (lambda s: [*s[:9], 65, *s[10:]], 9, "extra_200", "'A'"),
        (lambda s: [*s[:6], EOL, *s[7:]], 6, "visual token", "extra_200"),
        (lambda s: s[:2] + ids("02*3") + s[5:], 2, "size as text", "02*3"),
        (lambda s: s[:2] + ids("9*9") + s[5:], 16, "visual tokens", "end of the sequence"),
        (lambda s: s[:2] + ids("99999*9999") + s[5:], 23, "visual tokens", "end of the sequence"),
        (lambda s: s[:2] + ids("0*3") + s[5:], 2, "size as text", "0*3"),
        (lambda s: [VISUAL, *s], 0, "text or '<|image start|>'", "visual_00000"),
        (lambda s: [*s, EOI], 16, "text or", "image end"),
        (lambda s: [*s[:3], VISUAL, *s[3:]], 3, "size as text", "visual_00000"),
        (lambda s: [*s[:1], BOI, *s[1:]], 2, "size as text", "image start"),
    ],
)
def test_malformed_sequences_name_position_expected_and_found(change, position, expected, found) -> None:
    layout = build({"type": "emu3"})
    good = [65, *layout.block(torch.zeros(2, 3, dtype=torch.int64)).tolist()]
    assert len(layout.find_blocks(good)) == 1
    with pytest.raises(MalformedSequenceError) as error:
        layout.find_blocks(change(good))
    assert error.value.position == position
    assert expected in error.value.expected
    assert found in error.value.found


def test_grids_that_do_not_suit_are_refused() -> None:
    layout = build({"type": "emu3"})
    with pytest.raises(UserError, match="video"):
        layout.template((2, 3, 4))
    with pytest.raises(UserError, match=r"\(0, 3\)"):
        layout.template((0, 3))
    with pytest.raises(ValueError, match="video"):
        build({"type": "chameleon"}, (2, 3, 4))
    flat = build({"type": "emu3"}, (6,))
    assert flat.template((6,)).tolist()[:6] == [BOI, *ids("1*6"), IMG, -1]
    with pytest.raises(MalformedSequenceError, match="one row"):
        flat.find_blocks(layout.block(torch.zeros(2, 3, dtype=torch.int64)))


def test_text_and_picture_together() -> None:
    layout = build({"type": "emu3"})
    block = layout.block(torch.zeros(2, 3, dtype=torch.int64))
    bos, eos = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id
    assert layout.caption_to_image("cat", block).tolist() == [bos, *ids("cat"), *block.tolist(), eos]
    assert layout.image_to_caption(block, "cat").tolist() == [bos, *block.tolist(), *ids("cat"), eos]
    header = layout.header((2, 3)).tolist()
    assert layout.prompt_for_image("cat", (2, 3)).tolist() == [bos, *ids("cat"), *header]
    assert layout.prompt_for_image(None, (2, 3)).tolist() == [bos, *header]
    assert layout.prompt_for_caption(block).tolist() == [bos, *block.tolist()]


def test_prompt_and_body_make_the_whole_sample() -> None:
    layout = build({"type": "emu3"})
    sample = layout.caption_to_image("cat", layout.block(torch.full((2, 3), 7)))
    prompt, body = layout.prompt_for_image("cat", (2, 3)), layout.body((2, 3))
    slots = torch.cat([prompt, body, torch.tensor([layout.eos_id])])
    assert len(slots) == len(sample)
    assert torch.equal(sample[slots >= 0], slots[slots >= 0])
    assert (sample[slots < 0] == VISUAL + 7).all()


def test_a_tokenizer_without_bos_gets_none_and_without_eos_is_refused() -> None:
    tokenizer = ascii_tokenizer()
    tokenizer.bos_token = None
    config, vocabulary = LayoutConfig.family.config({"type": "emu3"}), VisualVocabulary(start=VISUAL, size=64)
    layout = LayoutConfig.family.build(config, tokenizer=tokenizer, vocabulary=vocabulary)
    assert layout.prompt_for_image("a", (2, 3)).tolist() == [97, *layout.header((2, 3)).tolist()]
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="eos_token"):
        LayoutConfig.family.build(config, tokenizer=tokenizer, vocabulary=vocabulary)


def test_missing_structural_tokens_are_named() -> None:
    with pytest.raises(ValueError, match="<nowhere>"):
        build({"type": "emu3", "image_token": "<nowhere>"})


def test_published_chameleon_names_give_the_index_order() -> None:
    assert published_table(
        {"IMGIMGBCZ": 4, **{f"IMGIMG{c}Z": 20 - n for n, c in enumerate("ABCDEFGHIJ")}}
        | {"IMGIMGBAZ": 50, "IMGIMGBBZ": 51, "text": 99}
    ) == [20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 50, 51, 4]
    with pytest.raises(ValueError):
        published_table({"IMGIMGBZ": 3})
