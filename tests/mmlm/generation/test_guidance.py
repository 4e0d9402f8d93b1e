from __future__ import annotations

import pytest
import torch

from mmlm.generation.drawing import draw_pictures
from mmlm.generation.guidance import (
    Guidance,
    TextAndImageGuidance,
    TextGuidance,
    choose_guidance,
    guide,
)
from mmlm.generation.prompts import read_prompts
from mmlm.generation.sampling import RowSampler, row_uniforms
from mmlm.recipes.sampling import PictureSampling, Sampling
from visual_tokenizer.errors import UserError

GRID = (2, 4)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 3.0, 7.5])
def test_guide_is_the_formula(scale):
    conditional, unconditional = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    wanted = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(guide(conditional, unconditional, scale), wanted)


class Recorder:
    """Keeps what another guidance made at each step."""

    def __init__(self, guidance):
        self.guidance = guidance
        self.contexts = guidance.contexts
        self.guided = []

    def combine(self, scores):
        self.guided.append(self.guidance.combine(scores))
        return self.guided[-1]


@torch.no_grad()
def check_against_separate_passes(merged, prompts, guidance, slow_contexts, formula):
    """Compare the guided scores of every step with whole passes over each context, without cache, padding or batch."""
    model, processor = merged
    layout = processor.layout
    ids = processor.vocabulary.visual_ids()
    recorder = Recorder(guidance)
    sampler = RowSampler(torch.stack([row_uniforms(0, str(row), 0, 10) for row in range(len(prompts))]), Sampling())
    drawn = draw_pictures(model, layout, GRID, read_prompts(processor, prompts), recorder, sampler)
    assert drawn.shape == (len(prompts), 8)
    assert len(recorder.guided) == 8
    body = layout.body(GRID)[:10].repeat(len(prompts), 1)
    body[:, body[0] < 0] = drawn
    for row, contexts in enumerate(slow_contexts):
        for number, step in enumerate((layout.body(GRID) < 0).nonzero().flatten().tolist()):
            scores = [model(torch.cat([context, body[row, :step]])[None]).logits[0, -1][ids] for context in contexts]
            torch.testing.assert_close(recorder.guided[number][row], formula(*scores), atol=1e-4, rtol=1e-4)


def test_two_way_scores_equal_separate_passes(merged):
    prompts = ["a red dog", "a yellow house near the sea"]
    layout = merged[1].layout
    null = layout.prompt_for_image(None, GRID)
    slow = [(layout.prompt_for_image(text, GRID), null) for text in prompts]
    assert len({len(null), *(len(full) for full, _ in slow)}) == 3  # so that padding matters
    check_against_separate_passes(merged, prompts, TextGuidance(2.5), slow, lambda c, u: u + 2.5 * (c - u))


def test_a_negative_prompt_stands_in_for_no_prompt(merged):
    layout = merged[1].layout
    (negative,) = read_prompts(merged[1], ["a black car"])
    slow = [(layout.prompt_for_image("a red dog", GRID), layout.prompt_for_image("a black car", GRID))]
    check_against_separate_passes(merged, ["a red dog"], TextGuidance(2.0, negative), slow, lambda c, u: 2 * c - u)


def test_three_way_scores_equal_chameleons_formula_over_three_passes(merged):
    processor = merged[1]
    layout = processor.layout
    picture = torch.arange(8).view(GRID)
    other = torch.arange(8, 16).view(GRID)
    header, block = layout.header(GRID), layout.block(picture)
    text = [processor.text_ids(piece) for piece in ("a red dog", "at night")]
    full = layout.join(layout.bos_ids, text[0], block, text[1], layout.block(other), header)
    images = layout.join(layout.bos_ids, block, layout.block(other), header)
    check_against_separate_passes(
        merged,
        [["a red dog", picture, "at night", other]],
        TextAndImageGuidance(3.0, 1.2),
        [(full, images, layout.join(layout.bos_ids, header))],
        lambda f, i, u: u + 1.2 * (i - u) + 3.0 * (f - i),
    )


def test_without_pictures_three_way_guidance_is_two_way():
    full, nothing = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    three = TextAndImageGuidance(3.0, 1.2).combine(torch.stack([full, nothing, nothing]))
    torch.testing.assert_close(three, TextGuidance(3.0).combine(torch.stack([full, nothing])))


def test_the_settings_choose_the_guidance(merged):
    def chosen(guidance_scale, **others):
        return choose_guidance(processor, PictureSampling(guidance_scale=guidance_scale, **others))

    processor = merged[1]
    assert chosen(1.0) == Guidance()
    assert chosen(2.0) == TextGuidance(2.0)
    assert chosen(1.0, image_guidance_scale=1.2) == TextAndImageGuidance(1.0, 1.2)
    assert chosen(2.0, negative_prompt="a black car").negative.name == "a black car"
    with pytest.raises(UserError, match="image_guidance_scale must be 0 or more, got -1"):
        chosen(1.0, image_guidance_scale=-1)
