from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from PIL import Image

from mmlm.generation.best_of import CaptionLikelihood, ImageTextSimilarity, generate_best
from mmlm.generation.images import generate_images, generate_indices
from mmlm.generation.previews import partial_indices, steps_of_rows
from mmlm.recipes.sampling import PictureSampling
from visual_tokenizer.errors import UserError

GRID = (2, 4)
RED, BLUE = (Image.new("RGB", (32, 16), color) for color in ("red", "blue"))


def draw(merged, prompts, **settings):
    own = {field.name: settings.pop(field.name, None) for field in fields(PictureSampling)}
    return generate_indices(*merged, prompts, PictureSampling.over(merged[1].sampling, **own), grid=GRID, **settings)


@torch.no_grad()
def draw_after(model, processor, prompt):
    """Draw greedily with whole passes after the ids of a prompt, without guidance."""
    layout, ids, drawn = processor.layout, prompt, []
    visual = processor.vocabulary.visual_ids()
    for slot in layout.body(GRID).tolist():
        token = slot
        if slot < 0:
            token = int(visual[model(ids[None]).logits[0, -1][visual].argmax()])
            drawn.append(token)
        ids = torch.cat([ids, torch.tensor([token])])
    return processor.vocabulary.ids_to_indices(torch.tensor(drawn).view(GRID))


def test_pictures_in_a_prompt_stand_where_they_were_put(merged):
    model, processor = merged
    layout = processor.layout
    red, blue = (layout.block(one) for one in processor.encode_images([RED, BLUE]))
    word = processor.text_ids("to")
    wanted = [
        layout.join(layout.bos_ids, red, word, blue, layout.header(GRID)),
        layout.join(layout.bos_ids, blue, word, layout.header(GRID)),
        layout.join(layout.bos_ids, word, layout.header(GRID)),
    ]
    drawn = draw(merged, [[RED, "to", BLUE], [BLUE, "to"], "to"], temperature=0.0, guidance_scale=1.0)
    assert torch.equal(drawn, torch.stack([draw_after(model, processor, prompt) for prompt in wanted]))
    assert len(drawn.flatten(1).unique(dim=0)) == 3


def test_indices_may_stand_for_a_picture(merged):
    indices = merged[1].encode_images([RED])[0]
    assert torch.equal(draw(merged, [[indices, "a"]]), draw(merged, [[RED, "a"]]))


def test_each_prompt_may_have_its_own_seed(merged):
    both = draw(merged, ["a red dog", "a red dog"], seed=[3, 4])
    assert torch.equal(both, torch.cat([draw(merged, ["a red dog"], seed=seed) for seed in (3, 4)]))
    with pytest.raises(UserError, match="one for each of the 2 prompts, got 1"):
        draw(merged, ["a", "b"], seed=[1])


def test_a_negative_prompt_changes_the_picture(merged):
    plain = draw(merged, ["a red dog"])
    assert not torch.equal(plain, draw(merged, ["a red dog"], negative_prompt="a black car"))
    assert torch.equal(plain, draw(merged, ["a red dog"], negative_prompt=""))


def test_rows_are_shown_from_the_top_until_the_picture_is_done(merged):
    seen = []
    images = generate_images(*merged, ["a", "a red dog"], batch_size=1, on_rows=lambda *given: seen.append(given))
    assert [(rows, number) for _, rows, number in seen] == [(1, 0), (2, 0), (1, 1), (2, 1)]
    for number, image in enumerate(images):
        (half, _, _), (whole, _, _) = seen[2 * number : 2 * number + 2]
        assert whole.tobytes() == image.tobytes()
        assert half.crop((0, 0, 32, 8)).tobytes() == image.crop((0, 0, 32, 8)).tobytes()  # a decoder by patches
        assert half.crop((0, 8, 32, 16)).getcolors() == [(256, (128, 128, 128))]


def test_previews_can_be_rarer_and_never_change_the_picture(merged):
    seen = []
    images = generate_images(*merged, ["a"], rows_per_preview=2, on_rows=lambda *given: seen.append(given[1]))
    assert seen == [2]
    assert images[0].tobytes() == generate_images(*merged, ["a"])[0].tobytes()


def test_rows_that_are_missing_repeat_the_last_one(merged):
    layout, vocabulary = merged[1].layout, merged[1].vocabulary
    ids = vocabulary.visual_ids()[[5, 6, 7, 8]][None]
    assert partial_indices(layout, ids, GRID, 1).tolist() == [[[5, 6, 7, 8], [5, 6, 7, 8]]]
    assert steps_of_rows(layout, GRID) == [4, 9]  # an end of row stands between


def test_tokens_without_rows_are_shown_one_by_one(merged):
    _, processor = merged
    layout = type(processor.layout)(processor.layout.config.for_grid((4,)), processor.tokenizer, processor.vocabulary)
    assert steps_of_rows(layout, (4,)) == [1, 2, 3, 4]
    ids = processor.vocabulary.visual_ids()[[5, 6]][None]
    assert partial_indices(layout, ids, (4,), 2).tolist() == [[5, 6, 6, 6]]


def test_the_best_of_several_is_the_scorers_choice(merged):
    model, processor = merged
    prompts = ["a red dog", "a black car"]
    all_of_them = generate_images(model, processor, prompts, num_images_per_prompt=4, seed=2)
    asked = []

    def brightest(candidates):
        asked.append([candidate.prompt for candidate in candidates])
        return [sum(candidate.image.convert("L").tobytes()) for candidate in candidates]

    best = generate_best(model, processor, prompts, 4, brightest, seed=2)
    assert asked == [[prompt] * 4 for prompt in prompts]
    for number, image in enumerate(best):
        own = all_of_them[4 * number : 4 * number + 4]
        assert image.tobytes() == max(own, key=lambda one: sum(one.convert("L").tobytes())).tobytes()
    with pytest.raises(UserError, match="gave 1 scores for 4"):
        generate_best(model, processor, prompts, 4, lambda candidates: [0.0])


@torch.no_grad()
def test_caption_likelihood_is_the_models_own(merged):
    model, processor = merged
    seen = []

    def keep(candidates):
        seen.extend(candidates)
        return CaptionLikelihood(model, processor)(candidates)

    best = generate_best(model, processor, ["a red dog"], 3, keep)
    slow = []
    for candidate in seen:
        ids = processor.image_to_caption(candidate.indices, candidate.prompt)
        labels = ids.clone()
        labels[: len(processor.prompt_for_caption(candidate.indices))] = -100
        slow.append(-float(model(ids[None], labels=labels[None]).loss))
    torch.testing.assert_close(CaptionLikelihood(model, processor)(seen), slow)
    assert len(set(slow)) == 3
    assert best[0].tobytes() == seen[slow.index(max(slow))].image.tobytes()


def test_similarity_is_the_cosine_of_the_features():
    class Features(torch.nn.Module):
        device = torch.device("cpu")

        def get_image_features(self, pixel_values):
            return pixel_values

        def get_text_features(self, input_ids):
            return input_ids

    class Words:
        def __call__(self, text, images, **options):
            pixels = [list(map(float, image.getpixel((0, 0)))) for image in images]
            return {"pixel_values": torch.tensor(pixels), "input_ids": torch.tensor([[1.0, 0.0, 0.0]] * len(text))}

    from mmlm.generation.best_of import Candidate

    candidates = [Candidate(image, torch.zeros(1), "red") for image in (RED, BLUE, Image.new("RGB", (2, 2), "yellow"))]
    assert ImageTextSimilarity(Features(), Words())(candidates) == pytest.approx([1.0, 0.0, 0.5**0.5])
