from __future__ import annotations

import pytest
import torch
from PIL import Image

from mmlm.generation.captions import describe_images
from visual_tokenizer.errors import UserError

IMAGES = [Image.new("RGB", (40, 20), color) for color in ("red", "green", "blue", "white", "black")]


@torch.no_grad()
def describe_slowly(model, processor, image, steps):
    layout = processor.layout
    row = processor.prompt_for_caption(processor.encode_images([image])[0])
    drawn = []
    forbidden = set(layout.tokenizer.all_special_ids) - {layout.eos_id}
    for _ in range(steps):
        scores = model(row[None]).logits[0, -1]
        scores[list(forbidden)] = -torch.inf
        scores[processor.dead_ids] = -torch.inf
        token = int(scores.argmax())
        if token == layout.eos_id:
            break
        drawn.append(token)
        row = torch.cat([row, torch.tensor([token])])
    return processor.tokenizer.decode(drawn).strip()


def test_greedy_captions_equal_a_plain_loop(merged):
    captions = describe_images(*merged, IMAGES, max_new_tokens=6, batch_size=2)
    assert captions == [describe_slowly(*merged, image, 6) for image in IMAGES]


def test_captions_hold_no_special_tokens_even_when_the_model_wants_them(merge_tiny):
    model, processor = merge_tiny()
    with torch.no_grad():
        model.lm_head.weight[processor.vocabulary.start :] *= 50
    for caption in describe_images(model, processor, IMAGES, max_new_tokens=8, temperature=2.0):
        assert "<|" not in caption


def test_a_caption_ends_at_eos(merge_tiny):
    model, processor = merge_tiny()
    with torch.no_grad():
        model.model.norm.weight.fill_(0)  # all scores are equal, and greedy takes the first: never text
        model.lm_head.weight[processor.layout.eos_id] = 1
        bias = torch.nn.Linear(model.lm_head.in_features, processor.merge.rows)
        bias.weight.zero_()
        bias.bias.zero_()
        bias.bias[processor.layout.eos_id] = 5
        model.lm_head = bias
    assert describe_images(model, processor, IMAGES[:2]) == ["", ""]


def test_sampled_captions_depend_on_seed_and_picture_only(merged):
    settings = {"temperature": 1.5, "max_new_tokens": 8}
    together = describe_images(*merged, IMAGES, seed=1, **settings)
    assert together == [describe_images(*merged, [image], seed=1, **settings)[0] for image in IMAGES]
    assert together != describe_images(*merged, IMAGES, seed=2, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": []}, "images must be a list"),
        ({"images": IMAGES[0]}, "images must be a list"),
        ({"max_new_tokens": 0}, "must be 1 or more, got 0 and 16"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"max_new_tokens": 1000}, "96 positions"),
    ],
)
def test_settings_out_of_range(merged, settings, message):
    with pytest.raises(UserError, match=message):
        describe_images(*merged, **{"images": IMAGES[:1], **settings})
