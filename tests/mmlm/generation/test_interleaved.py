from __future__ import annotations

import itertools

import pytest
import torch
from PIL import Image

from mmlm.generation.interleaved import generate_interleaved, join_pieces
from visual_tokenizer.errors import UserError

LAYOUTS = ["emu3", {"type": "chameleon", "height": 2, "width": 4}]
PICTURE = Image.new("RGB", (32, 16), "red")


def ask(merged, prompt, **settings):
    return join_pieces(generate_interleaved(*merged, prompt, **settings))


def keen(merge_tiny, layout="emu3", push=8.0):
    """A model that is drawn to open pictures and to whole characters: its head has a bias."""
    model, processor = merge_tiny(layout)
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()
        head.bias[processor.layout.start_id] = push
        single_bytes = [i for name, i in processor.tokenizer.get_vocab().items() if name.startswith("<0x")]
        head.bias[single_bytes] = -1000.0
    model.lm_head = head
    return model, processor


@torch.no_grad()
def answer_slowly(model, processor, prompt, scale, room, most_images):
    """Write greedily with whole passes and no cache; text and pictures as ids, until EOS or the end of the room."""
    layout = processor.layout
    template = layout.template((2, 4)).tolist()
    text = [i for i in range(len(processor.tokenizer)) if i not in set(processor.tokenizer.all_special_ids)]
    text = [i for i in text if not bool(layout.is_picture_token(torch.tensor([i])))]
    padding = [i for name, i in processor.tokenizer.get_vocab().items() if name.startswith("<|reserved_")]
    text = [i for i in text if i not in padding]
    text = [i for i in text if i not in set(processor.dead_ids.tolist())]
    text.append(layout.eos_id)
    visual = processor.vocabulary.visual_ids().tolist()
    ids, images = [], 0
    null = layout.join(layout.bos_ids)
    while len(ids) < room:
        opens = [layout.start_id] if images < most_images and len(template) <= room - len(ids) else []
        allowed = torch.tensor(sorted(text + opens))
        scores = model(layout.join(prompt, ids)[None]).logits[0, -1]
        token = int(allowed[scores[allowed].argmax()])
        if token == layout.eos_id:
            break
        ids.append(token)
        if token != layout.start_id:
            continue
        images += 1
        block = [token]
        for slot in template[1:]:
            full = model(layout.join(prompt, ids)[None]).logits[0, -1]
            none = model(layout.join(null, block)[None]).logits[0, -1]
            allowed = torch.tensor(visual if slot < 0 else [slot])
            token = int(allowed[(none + scale * (full - none))[allowed].argmax()])
            block.append(token)
            ids.append(token)
    return ids


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_greedy_answers_equal_a_plain_loop(merge_tiny, layout, scale):
    model, processor = keen(merge_tiny, layout)
    indices = processor.encode_images([PICTURE])[0]
    prompt = processor.layout.join(
        processor.layout.bos_ids, processor.text_ids("a red"), processor.image_block(indices), processor.text_ids("dog")
    )
    wanted = answer_slowly(model, processor, prompt, scale, 45, 2)
    found = ask(
        (model, processor),
        ["a red", PICTURE, "dog"],
        max_new_tokens=45,
        max_images=2,
        text_temperature=0.0,
        temperature=0.0,
        guidance_scale=scale,
    )
    blocks = processor.layout.find_blocks(wanted)
    images = processor.decode_images(wanted)[0]
    assert len(blocks) == 2
    assert [piece.tobytes() for piece in found if not isinstance(piece, str)] == [image.tobytes() for image in images]
    edges = [0, *itertools.chain.from_iterable((block.start, block.end) for block in blocks), len(wanted)]
    texts = [processor.tokenizer.decode(wanted[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    assert [piece for piece in found if isinstance(piece, str)] == [text for text in texts if text]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_wild_answers_hold_whole_pictures_and_clean_text(merge_tiny, layout):
    merged = keen(merge_tiny, layout, push=1.0)
    with torch.no_grad():
        merged[0].lm_head.bias[merged[1].vocabulary.start :] = 5.0  # it wants visual tokens everywhere
    images = 0
    for seed in range(12):
        pieces = ask(
            merged, "a dog", seed=seed, max_new_tokens=60, text_temperature=2.0, text_top_p=1.0, temperature=2.0
        )
        names = [*merged[1].layout.structural_ids, "<|visual", *merged[1].tokenizer.all_special_tokens]
        assert not any(name in piece for piece in pieces if isinstance(piece, str) for name in names)
        assert all(piece.size == (32, 16) for piece in pieces if not isinstance(piece, str))
        images += sum(not isinstance(piece, str) for piece in pieces)
    assert images >= 3


def test_a_picture_can_be_asked_for_at_once_and_edited(merge_tiny):
    merged = keen(merge_tiny)
    first = ask(merged, "a red dog", open_image=True, max_images=1, max_new_tokens=40)[0]
    assert first.size == (32, 16)
    edited = ask(
        merged, [first, "make it blue"], open_image=True, max_images=1, max_new_tokens=40, image_guidance_scale=1.2
    )[0]
    other = ask(merged, [PICTURE, "make it blue"], open_image=True, max_images=1, max_new_tokens=40)[0]
    assert edited.tobytes() != other.tobytes()


def test_no_picture_is_begun_where_none_fits(merge_tiny):
    merged = keen(merge_tiny, push=100.0)
    length = len(merged[1].layout.template((2, 4)))
    for room, pictures in ((length - 1, 0), (length, 1), (2 * length - 1, 1), (2 * length, 2)):
        pieces = ask(merged, "a", max_new_tokens=room, temperature=1.0)
        assert sum(not isinstance(piece, str) for piece in pieces) == pictures
    assert all(isinstance(piece, str) for piece in ask(merged, "a", max_images=0, max_new_tokens=40))


def test_the_model_chooses_among_the_grids(merge_tiny):
    merged = keen(merge_tiny, push=100.0)
    grids = [(1, 2), (2, 2), (2, 4)]
    sizes = {
        piece.size
        for seed in range(8)
        for piece in ask(merged, "a", seed=seed, grids=grids, max_images=1, max_new_tokens=20, temperature=3.0)
        if not isinstance(piece, str)
    }
    assert len(sizes) > 1
    assert sizes <= {(16, 8), (16, 16), (32, 16)}


def test_rows_are_shown_as_they_appear(merge_tiny):
    merged = keen(merge_tiny, push=100.0)
    seen = []
    pieces = ask(merged, "a", max_images=1, max_new_tokens=40, on_rows=lambda *given: seen.append(given))
    (image,) = [piece for piece in pieces if not isinstance(piece, str)]
    assert [(rows, number) for _, rows, number in seen] == [(1, 0), (2, 0)]
    assert seen[-1][0].tobytes() == image.tobytes()
    assert seen[0][0].getpixel((5, 12)) == (128, 128, 128)


def test_it_returns_how_the_answer_ended(merge_tiny):
    model, processor = keen(merge_tiny)

    def ending(**settings):
        pieces = generate_interleaved(model, processor, "a dog", max_images=1, **settings)
        while True:
            try:
                next(pieces)
            except StopIteration as stop:
                return stop.value

    prompt = len(processor.layout.bos_ids) + len(processor.text_ids("a dog"))
    model.lm_head.bias.data[processor.layout.eos_id] = -1000.0
    assert ending(max_new_tokens=30) == (prompt, 30, False)
    model.lm_head.bias.data[processor.layout.eos_id] = 1000.0
    assert ending(max_new_tokens=30) == (prompt, 0, True)


def test_the_same_seed_gives_the_same_answer(merge_tiny):
    merged = keen(merge_tiny)

    def answer(seed):
        return [p if isinstance(p, str) else p.tobytes() for p in ask(merged, "a", seed=seed, max_new_tokens=50)]

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more"),
        ({"max_images": -1}, "max_images must be 0 or more"),
        ({"open_image": True, "max_images": 0}, "max_images must be 1 or more"),
        ({"open_image": True, "max_new_tokens": 5}, "max_new_tokens leaves 5"),
        ({"text_temperature": -1.0}, "temperature must be 0"),
        ({"guidance_scale": -1.0}, "guidance_scale must be 0 or more"),
        ({"prompt": "a red dog " * 60}, "no room is left"),
        ({"prompt": 3}, "lists of texts and pictures"),
    ],
)
def test_settings_out_of_range(merged, settings, message):
    with pytest.raises(UserError, match=message):
        ask(merged, **{"prompt": "a", **settings})
