import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visual_tokenizer import build_quantizer


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=4))
def test_indices_are_a_bijection_with_the_first_dimension_fastest(levels):
    quantizer = build_quantizer("fsq", levels=levels).eval()
    indices = torch.arange(quantizer.codebook_size)
    codes = quantizer.indices_to_codes(indices[None])[0]
    digits = itertools.product(*[range(level) for level in reversed(levels)])
    expected = torch.tensor([list(reversed(d)) for d in digits], dtype=torch.float32)
    half = torch.tensor([level // 2 for level in levels])
    torch.testing.assert_close(codes, (expected - half) / half, atol=0, rtol=0)
    assert codes.unique(dim=0).shape[0] == math.prod(levels)


def test_published_bound_and_rounding():
    """Appendix A of the paper, written out for one even and one odd number of levels."""
    latents = torch.linspace(-4, 4, 101)[None, :, None].repeat(1, 1, 2)
    quantizer = build_quantizer("fsq", levels=[8, 5]).eval()
    codes = quantizer(latents).codes[0]
    for channel, level in enumerate([8, 5]):
        half_l = (level - 1) * 1.001 / 2
        offset = 0.5 if level % 2 == 0 else 0.0
        bounded = torch.tanh(latents[0, :, channel] + math.atanh(offset / half_l)) * half_l - offset
        torch.testing.assert_close(codes[:, channel], bounded.round() / (level // 2))
    assert codes[:, 0].min() == -1
    assert codes[:, 0].max() == 0.75
    assert codes[:, 1].unique().tolist() == [-1, -0.5, 0, 0.5, 1]


def test_zero_maps_to_zero_for_even_and_odd_levels():
    assert torch.equal(build_quantizer("fsq", levels=[8, 5])(torch.zeros(1, 1, 2)).codes, torch.zeros(1, 1, 2))


def test_gradient_is_that_of_the_bound():
    latents = torch.tensor([[[0.3, -0.2]]], requires_grad=True)
    build_quantizer("fsq", levels=[8, 5])(latents).codes.sum().backward()
    again = torch.tensor([[[0.3, -0.2]]], requires_grad=True)
    half_l = torch.tensor([7, 4]) * 1.001 / 2
    shift = torch.tensor([math.atanh(0.5 / half_l[0]), 0.0])
    (torch.tanh(again + shift) * half_l / torch.tensor([4, 2])).sum().backward()
    torch.testing.assert_close(latents.grad, again.grad)


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [8, 8, 8, 5, 5, 5], [3, 3]])
def test_same_as_vector_quantize_pytorch(levels):
    reference = pytest.importorskip("vector_quantize_pytorch").FSQ(levels)
    latents = torch.randn(2, 50, len(levels)) * 2
    mine, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    output = build_quantizer("fsq", levels=levels)(mine)
    codes, indices = reference(theirs)
    assert torch.equal(output.indices, indices.long())
    torch.testing.assert_close(output.codes, codes)
    weights = torch.randn_like(codes)
    (output.codes * weights).sum().backward()
    (codes * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [2, 3, 4, 6, 7]])
def test_symmetric_grid_same_as_vector_quantize_pytorch(levels):
    """Its `preserve_symmetry` takes ⌊x + ½⌋ of the grid coordinate: other than rounding at exact halves alone."""
    reference = pytest.importorskip("vector_quantize_pytorch").FSQ(levels, preserve_symmetry=True)
    latents = torch.randn(2, 50, len(levels)) * 2
    mine, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    quantizer = build_quantizer("fsq", levels=levels, grid="symmetric")
    output = quantizer(mine)
    codes, indices = reference(theirs)
    assert torch.equal(output.indices, indices.long())
    torch.testing.assert_close(output.codes, codes)
    everything = torch.arange(quantizer.codebook_size)[None]
    torch.testing.assert_close(quantizer.indices_to_codes(everything), reference.indices_to_codes(everything))
    weights = torch.randn_like(codes)
    (output.codes * weights).sum().backward()
    (codes * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_symmetric_grid_closed_form_reaches_both_ends():
    """s = (tanh(z) + 1)/2·(L−1), rounded, and back to [−1, 1]."""
    latents = torch.linspace(-4.05, 4, 101)[None, :, None].repeat(1, 1, 2)
    quantizer = build_quantizer("fsq", levels=[8, 5], grid="symmetric").eval()
    output = quantizer(latents)
    levels = torch.tensor([8, 5])
    expected = ((torch.tanh(latents) + 1) / 2 * (levels - 1)).round()
    torch.testing.assert_close(output.codes, expected / (levels - 1) * 2 - 1)
    for channel, level in enumerate([8, 5]):
        values = output.codes[0, :, channel].unique()
        torch.testing.assert_close(values, torch.linspace(-1, 1, level))
    assert torch.equal(quantizer.indices_to_codes(output.indices), output.codes)


@pytest.mark.parametrize("grid", ["published", "symmetric"])
def test_index_order_changes_indices_alone(grid):
    """Closed form of both orders on levels 3 and 4."""
    latents = torch.randn(1, 60, 2)
    first, last = (
        build_quantizer("fsq", levels=[3, 4], grid=grid, index_order=order).eval()
        for order in ("first_fastest", "last_fastest")
    )
    one, other = first(latents), last(latents)
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.indices % 3, other.indices // 4)
    assert torch.equal(one.indices // 3, other.indices % 4)
    assert torch.equal(last.indices_to_codes(other.indices), other.codes)


@pytest.mark.parametrize("grid", ["published", "symmetric"])
def test_noise_replaces_rounding_in_training_alone(grid):
    """Property: where noise fell, the code lies within half a bin of the bounded latent, evenly; indices as without."""
    latents = torch.randn(8, 500, 3)
    levels = torch.tensor([8, 5, 4])
    plain = build_quantizer("fsq", levels=levels.tolist(), grid=grid)
    noisy = build_quantizer("fsq", levels=levels.tolist(), grid=grid, noise=0.25)
    rounded, output = plain(latents), noisy(latents)
    assert torch.equal(output.indices, rounded.indices)
    is_noisy = output.codes != rounded.codes
    assert is_noisy.float().mean().item() == pytest.approx(0.25, abs=0.02)
    step = 2 / (levels - 1) if grid == "symmetric" else 1 / (levels // 2)
    bounded = torch.tanh(latents + plain.shift) * plain.half_range - plain.offset
    errors = (output.codes - (bounded - plain.centre) / plain.scale) / step
    assert errors[is_noisy].abs().max() <= 0.5 + 1e-5
    assert errors[is_noisy].mean().item() == pytest.approx(0, abs=0.03)
    assert errors[is_noisy].std().item() == pytest.approx(12**-0.5, abs=0.02)
    assert torch.equal(noisy.eval()(latents).codes, plain.eval()(latents).codes)


def test_a_codebook_beyond_a_table_of_counts():
    """2^30 codes: neither the codes nor their counts are ever laid out."""
    output = build_quantizer("fsq", levels=[8] * 10)(torch.randn(2, 8, 10))
    assert output.metrics["perplexity"].item() == pytest.approx(16)
    assert output.metrics["usage"].item() == pytest.approx(16 / 2**30)


def test_bad_fields():
    for levels in ([], [1, 5], [2] * 31):
        with pytest.raises(ValueError, match="levels"):
            build_quantizer("fsq", levels=levels)
    for field, wrong in (("epsilon", 0.0), ("epsilon", 1.0), ("noise", -0.1), ("noise", 1.5)):
        with pytest.raises(ValueError, match=f"{field} must be in"):
            build_quantizer("fsq", **{field: wrong})
    for field in ("grid", "index_order"):
        with pytest.raises(ValueError, match=field):
            build_quantizer("fsq", **{field: "other"})
