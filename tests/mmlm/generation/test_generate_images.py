from __future__ import annotations

import copy
import math
from dataclasses import fields

import pytest
import torch
from PIL import Image
from transformers import GenerationConfig

from mmlm.generation.images import generate_images, generate_indices
from mmlm.generation.loop import evaluation_mode
from mmlm.recipes.sampling import PictureSampling
from mmlm.vocabulary import VisualVocabulary
from visual_tokenizer.errors import UserError

GRID = (2, 4)
PROMPTS = ["a red dog", "a yellow house near the sea", "!", "a black tree at night"]


def draw(merged, prompts, **settings):
    own = {field.name: settings.pop(field.name, None) for field in fields(PictureSampling)}
    return generate_indices(*merged, prompts, PictureSampling.over(merged[1].sampling, **own), grid=GRID, **settings)


def test_pictures_have_the_image_processors_size(merged):
    images = generate_images(*merged, ["a red dog"], num_images_per_prompt=2)
    assert [type(image) for image in images] == [Image.Image] * 2
    assert {image.size for image in images} == {(32, 16)}
    assert {image.mode for image in images} == {"RGB"}


@pytest.mark.parametrize("layout", ["emu3", {"type": "chameleon", "height": 2, "width": 4}])
def test_five_hundred_wild_draws_are_all_pictures(merge_tiny, layout):
    model, processor = merge_tiny(layout)
    images = generate_images(
        model,
        processor,
        PROMPTS,
        temperature=2.0,
        num_images_per_prompt=125,
        batch_size=250,
        guidance_scale=1.5,
    )
    assert len(images) == 500
    assert {image.size for image in images} == {(32, 16)}
    assert len({image.tobytes() for image in images}) > 400


@pytest.mark.parametrize("scale", [1.0, 0.0, 3.0])
def test_greedy_equals_a_plain_loop_without_cache(merged, draw_slowly, scale):
    drawn = draw(merged, PROMPTS, temperature=0.0, guidance_scale=scale)
    wanted = torch.stack([draw_slowly(*merged, prompt, scale, GRID) for prompt in PROMPTS])
    assert torch.equal(drawn, wanted)
    assert len(wanted.flatten(1).unique(dim=0)) == (1 if scale == 0 else len(PROMPTS))


def test_positions_with_several_codebooks_equal_the_plain_loop(merged, draw_slowly):
    model, one = merged
    processor = copy.copy(one)
    processor.vocabulary = VisualVocabulary(start=one.vocabulary.start, size=16, num_codebooks=2)
    processor.layout = type(one.layout)(one.layout.config, one.tokenizer, processor.vocabulary)
    drawn = draw((model, processor), PROMPTS, temperature=0.0)
    assert drawn.shape == (4, *GRID, 2)
    assert int(drawn.max()) < 16
    assert torch.equal(drawn, torch.stack([draw_slowly(model, processor, text, 3.0, GRID) for text in PROMPTS]))


def test_the_same_seed_gives_the_same_pictures_and_another_does_not(merged):
    first = draw(merged, PROMPTS, seed=3)
    assert torch.equal(first, draw(merged, PROMPTS, seed=3))
    assert not torch.equal(first, draw(merged, PROMPTS, seed=4))


def test_the_global_random_state_is_neither_used_nor_changed(merged):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = draw(merged, PROMPTS)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(first, draw(merged, PROMPTS))


def test_a_picture_does_not_depend_on_its_neighbours(merged):
    together = draw(merged, PROMPTS)
    alone = torch.cat([draw(merged, [prompt]) for prompt in PROMPTS])
    backwards = draw(merged, PROMPTS[::-1], batch_size=3).flip(0)
    assert torch.equal(together, alone)
    assert torch.equal(together, backwards)


def test_repeats_of_a_prompt_differ_and_continue_each_other(merged):
    three = draw(merged, ["a red dog"] * 3)
    assert len(three.flatten(1).unique(dim=0)) == 3
    assert torch.equal(three, draw(merged, ["a red dog"], num_images_per_prompt=3))
    assert torch.equal(three[:1], draw(merged, ["a red dog"]))


def test_pictures_of_one_prompt_stand_together(merged):
    both = draw(merged, PROMPTS[:2], num_images_per_prompt=2, batch_size=3)
    assert torch.equal(both[2:], draw(merged, PROMPTS[1:2], num_images_per_prompt=2))


def test_guidance_changes_pictures_and_scale_one_is_off(merged):
    assert not torch.equal(draw(merged, PROMPTS, guidance_scale=4.0), draw(merged, PROMPTS, guidance_scale=1.0))


def test_top_k_of_one_is_greedy(merged):
    greedy = draw(merged, PROMPTS, temperature=0.0)
    assert torch.equal(draw(merged, PROMPTS, top_k=1), greedy)
    assert torch.equal(draw(merged, PROMPTS, top_p=1e-6), greedy)


def test_settings_in_the_models_generation_config_do_not_leak_in(merged):
    model, processor = merged
    wanted = draw(merged, PROMPTS, temperature=0.0)
    own = model.generation_config
    visual = processor.vocabulary.visual_ids().tolist()
    model.generation_config = GenerationConfig(
        suppress_tokens=visual[::2],
        repetition_penalty=5.0,
        do_sample=True,
        max_length=3,
        eos_token_id=visual[1],
    )
    try:
        assert torch.equal(draw(merged, PROMPTS, temperature=0.0), wanted)
        assert model.generation_config.repetition_penalty == 5.0
    finally:
        model.generation_config = own


def test_the_mode_of_each_part_is_restored_even_after_an_error(merged):
    model, _ = merged
    model.train()
    model.lm_head.eval()
    before = [part.training for part in model.modules()]
    try:
        draw(merged, PROMPTS[:1])
        assert [part.training for part in model.modules()] == before
        with evaluation_mode(model):
            assert not any(part.training for part in model.modules())
        with pytest.raises(UserError):
            draw(merged, ["a red dog " * 60])
        assert [part.training for part in model.modules()] == before
    finally:
        model.eval()


def test_dropout_is_off_while_drawing(merge_tiny):
    model, processor = merge_tiny()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    model.train()
    torch.manual_seed(0)
    first = draw((model, processor), PROMPTS, temperature=0.0)
    assert torch.equal(first, draw((model.eval(), processor), PROMPTS, temperature=0.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"top_p": 0.0}, "top_p must be in"),
        ({"top_k": -5}, "top_k must be"),
        ({"guidance_scale": -1.0}, "guidance_scale must be 0 or more, got -1.0"),
        ({"guidance_scale": math.nan}, "guidance_scale must be a finite number, got nan"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"prompts": []}, "prompts must be a list of one or more texts"),
        ({"prompts": "a red dog"}, "prompts must be a list of one or more texts"),
        ({"prompts": [3]}, "prompts must be a list of one or more texts"),
        ({"prompts": ["a red dog " * 60]}, "96 positions"),
    ],
)
def test_settings_out_of_range(merged, settings, message):
    settings = {"prompts": ["a"], **settings}
    with pytest.raises(UserError, match=message):
        generate_images(*merged, **settings)


def test_another_models_processor_is_refused(merged, make_model):
    with pytest.raises(UserError):
        generate_images(make_model(100), merged[1], ["a"])


def test_a_processor_without_codec_is_refused(merged):
    processor = copy.copy(merged[1])
    processor.codec = None
    with pytest.raises(UserError):
        generate_images(merged[0], processor, ["a"])


def test_broken_weights_are_reported(merge_tiny):
    model, processor = merge_tiny()
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(UserError, match="NaN"):
        generate_images(model, processor, ["a"])


def test_it_works_through_peft(merged):
    peft = pytest.importorskip("peft")
    model, processor = merged
    wanted = draw(merged, PROMPTS[:2], temperature=0.0)
    adapted = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["q_proj"], r=2))
    adapted.generation_config.repetition_penalty = 5.0
    assert torch.equal(draw((adapted, processor), PROMPTS[:2], temperature=0.0), wanted)
    assert adapted.generation_config.repetition_penalty == 5.0
