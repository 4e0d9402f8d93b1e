from __future__ import annotations

import math

import pytest
import torch

from mmlm.generation.sampling import RowSampler, keep_top_k, keep_top_p, pick, row_uniforms
from mmlm.recipes.sampling import Sampling
from visual_tokenizer.errors import UserError


def probabilities(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64).log()


def test_pick_inverts_the_cumulative_distribution():
    scores = probabilities(0.5, 0.25, 0.25)
    drawn = [int(pick(scores, torch.tensor([u], dtype=torch.float64))) for u in (0.01, 0.49, 0.51, 0.74, 0.76, 0.99)]
    assert drawn == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("uniform", [0.5 / 2**32, 1 - 0.5 / 2**32])
def test_pick_never_takes_a_forbidden_token_at_either_end(uniform):
    scores = torch.full((1, 1000), -torch.inf)
    scores[0, 3:7] = torch.randn(4, generator=torch.Generator().manual_seed(0))
    assert 3 <= int(pick(scores, torch.tensor([uniform], dtype=torch.float64))) < 7


def test_drawn_frequencies_are_the_probabilities():
    uniforms = row_uniforms(0, "a", 0, 20_000)
    wanted = torch.tensor([0.1, 0.2, 0.3, 0.4])
    drawn = pick(wanted.log().expand(len(uniforms), -1), uniforms)
    assert torch.bincount(drawn, minlength=4) / len(drawn) == pytest.approx(wanted, abs=0.015)


def test_row_uniforms_depend_on_seed_text_and_repeat_only():
    one = row_uniforms(1, "a", 0, 8)
    assert torch.equal(one, row_uniforms(1, "a", 0, 8))
    assert torch.equal(one[:4], row_uniforms(1, "a", 0, 4))
    others = [row_uniforms(2, "a", 0, 8), row_uniforms(1, "b", 0, 8), row_uniforms(1, "a", 1, 8)]
    assert not any(torch.equal(one, other) for other in others)
    assert float(one.min()) > 0
    assert float(one.max()) < 1


def test_row_uniforms_are_the_same_on_every_machine():
    first = row_uniforms(7, "a red apple", 0, 3).tolist()
    assert first == pytest.approx([0.3168555243173614, 0.8392017605947331, 0.5920819720486179], abs=1e-15)


def test_top_k_keeps_the_largest():
    kept = keep_top_k(torch.tensor([[1.0, 4.0, 2.0, 3.0]]), 2)
    assert kept.isfinite().tolist() == [[False, True, False, True]]
    assert keep_top_k(torch.zeros(1, 3), 10).isfinite().all()


@pytest.mark.parametrize(("p", "kept"), [(0.4, [1]), (0.5, [1]), (0.51, [1, 2]), (0.9, [1, 2, 0]), (1e-9, [1])])
def test_top_p_keeps_the_smallest_set_that_reaches_p(p, kept):
    finite = keep_top_p(probabilities(0.125, 0.5, 0.375), p).isfinite()[0]
    assert set(finite.nonzero().flatten().tolist()) == set(kept)


def sampler(temperature: float = 1.0, rows: int = 2, **settings) -> RowSampler:
    uniforms = torch.stack([row_uniforms(0, str(row), 0, 4) for row in range(rows)])
    return RowSampler(uniforms, Sampling(temperature=temperature, **settings))


@pytest.mark.parametrize("temperature", [0.0, 1e-30])
def test_temperature_near_zero_is_greedy(temperature):
    scores = torch.randn(2, 50, generator=torch.Generator().manual_seed(1)) * 100
    one = sampler(temperature)
    assert torch.equal(one.choose(scores, 0), scores.argmax(1))
    one.check_sound()


def test_temperature_divides_the_scores():
    scores = torch.randn(1, 8, generator=torch.Generator().manual_seed(2))
    uniforms = torch.stack([row_uniforms(0, str(row), 0, 1) for row in range(500)])
    drawn = RowSampler(uniforms, Sampling(temperature=3.0)).choose(scores.expand(500, -1), 0)
    assert torch.equal(drawn, pick((scores / 3).expand(500, -1), uniforms[:, 0]))


def test_scores_that_are_nan_are_reported():
    one = sampler()
    scores = torch.full((2, 5), math.nan)
    assert one.choose(scores, 0).shape == (2,)
    with pytest.raises(UserError, match="NaN or infinite"):
        one.check_sound()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, r"temperature must be 0 or more, got -0\.1"),
        ({"temperature": math.nan}, "temperature must be a finite number, got nan"),
        ({"temperature": math.inf}, "temperature must be a finite number, got inf"),
        ({"top_k": -1}, "top_k must be 0 or more, got -1"),
        ({"top_k": 1.5}, r"top_k must be a whole number, got 1\.5"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        ({"guidance_scale": -1}, "guidance_scale must be 0 or more, got -1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling(**settings)
