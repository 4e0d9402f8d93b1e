"""Queries read a network's features from codes of any number."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer.losses.base import LossConfig
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.teacher import Teacher, TeacherSection

FIELDS = {"level": 2, "code_dim": 4, "num_latents": 9, "grid_size": 4, "width": 16, "depth": 2, "heads": 2}


def build(name="feature_reconstruction", **fields):
    torch.manual_seed(0)
    return LossConfig.family.build({"type": name, **FIELDS, **fields})


def output(codes: torch.Tensor, present: torch.Tensor | None = None) -> TokenizerOutput:
    empty = torch.zeros(0)
    return TokenizerOutput(empty, torch.zeros(codes.shape[:2], dtype=torch.int64), empty, codes, empty, present=present)


@pytest.fixture(scope="module")
def batch():
    return {"pixels": torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1}


@pytest.fixture(scope="module")
def codes():
    return torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(1))


def test_it_is_one_minus_the_cosine_at_every_place(batch, codes):
    loss = build()
    teacher = loss.network.features(batch["pixels"], 3)[2]
    assert teacher.shape[2:] == (4, 4)
    predicted = loss.predict(codes)
    assert predicted.shape == (2, 16, teacher.shape[1])
    cosines = [
        F.cosine_similarity(predicted[picture, 4 * row + column], teacher[picture, :, row, column], dim=0)
        for picture in range(2)
        for row in range(4)
        for column in range(4)
    ]
    torch.testing.assert_close(loss(output(codes), batch), 1 - torch.stack(cosines).mean())


def test_a_perfect_reader_has_no_loss(batch, codes):
    loss = build()
    loss.predict = lambda *_: 3 * loss.target(batch).flatten(2).transpose(1, 2)
    assert loss(output(codes), batch) == pytest.approx(0, abs=1e-5)


def test_absent_codes_are_not_read(batch, codes):
    loss = build()
    present = torch.arange(9) < torch.tensor([[9], [3]])
    value = loss(output(codes, present), batch)
    spoiled = codes.masked_fill(~present[..., None], 1e3)
    torch.testing.assert_close(loss(output(spoiled, present), batch), value)
    alone = {"pixels": batch["pixels"][1:]}
    both = [loss(output(codes[:1]), {"pixels": batch["pixels"][:1]}), loss(output(codes[1:, :3]), alone)]
    torch.testing.assert_close(torch.stack(both).mean(), value, atol=1e-5, rtol=1e-4)


def test_gradient_reaches_present_codes_and_every_parameter(batch, codes):
    loss = build()
    present = torch.arange(9) < torch.tensor([[9], [3]])
    given = codes.clone().requires_grad_(True)
    loss(output(given, present), batch).backward()
    assert torch.equal(given.grad.abs().sum(2) > 0, present)
    assert all(weight.grad.abs().sum() > 0 for weight in loss.parameters())


def test_a_map_of_another_size_is_brought_to_the_grid(batch, codes):
    loss = build(grid_size=2)
    maps = loss.network.features(batch["pixels"], 3)[2]
    wanted = F.interpolate(maps, (2, 2), mode="bilinear", align_corners=False, antialias=True)
    loss.predict = lambda *_: wanted.flatten(2).transpose(1, 2)
    assert loss(output(codes), batch) == pytest.approx(0, abs=1e-5)


def test_the_recipe_s_teacher_is_the_one_that_is_read(batch, codes):
    teacher = Teacher(TeacherSection(size=64))
    loss = LossConfig.family.build({"type": "feature_reconstruction", **FIELDS}, teacher=teacher)
    assert loss.network is teacher.network
    assert loss.target(batch).shape[2:] == (8, 8)
    with pytest.raises(ValueError, match="level must be given, got null"):
        build(level=None)


def test_codes_of_another_tokenizer_are_refused(batch, codes):
    with pytest.raises(ValueError, match="those of the tokenizer, 4 and 9, got 5 and 9"):
        build(code_dim=5)(output(codes), batch)
    with pytest.raises(ValueError, match="those of the tokenizer, 4 and 9, got 4 and 8"):
        build(num_latents=8)(output(codes), batch)


def test_feature_distillation_says_what_to_take_instead(batch, codes):
    loss = LossConfig.family.build({"type": "feature_distillation", "level": 2, "channels": [0, 4], "width": 16})
    with pytest.raises(ValueError, match="take feature_reconstruction"):
        loss(output(codes, torch.ones(2, 9, dtype=torch.bool)), batch)
