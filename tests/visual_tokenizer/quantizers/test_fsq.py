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


def test_bad_levels():
    for levels in ([], [1, 5], [2] * 31):
        with pytest.raises(ValueError, match="levels"):
            build_quantizer("fsq", levels=levels)
