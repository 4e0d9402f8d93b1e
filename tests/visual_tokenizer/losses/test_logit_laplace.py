"""The logit-Laplace likelihood."""

from __future__ import annotations

import math

import pytest
import torch

from visual_tokenizer.layers.logit_laplace import logit_laplace_nll
from visual_tokenizer.losses.base import LossConfig
from visual_tokenizer.outputs import TokenizerOutput


def output_of(raw):
    empty = torch.zeros(1, 1, 1)
    return TokenizerOutput(pixels=raw[:, :3], raw=raw, indices=empty, latents=empty, codes=empty)


def loss_of(raw, pixels):
    loss = LossConfig.family.build({"type": "logit_laplace"})
    return loss, loss(output_of(raw), {"pixels": pixels})


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (1.5, 0.3), (-2.0, 0.7)])
def test_the_density_integrates_to_one_over_the_unit_interval(mean, scale):
    # In logits l the interval is the line and dx = x(1 − x) dl.
    logits = torch.linspace(-25, 25, 400001, dtype=torch.float64)
    values = logits.sigmoid()
    nll = logit_laplace_nll(values, torch.tensor(mean).double(), torch.tensor(math.log(scale)).double())
    finite = torch.isfinite(nll)
    total = torch.trapezoid(((-nll).exp() * values * (1 - values))[finite], logits[finite])
    assert float(total) == pytest.approx(1, abs=1e-6)


def test_six_channels_are_the_papers_formula():
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(2, 6, 4, 5, generator=generator)
    pixels = torch.rand(2, 3, 4, 5, generator=generator) * 2 - 1
    _, found = loss_of(raw, pixels)
    value = (1 - 2 * 0.1) * (pixels + 1) / 2 + 0.1
    scale = raw[:, 3:].exp()
    density = (-((value / (1 - value)).log() - raw[:, :3]).abs() / scale).exp() / (2 * scale * value * (1 - value))
    torch.testing.assert_close(found, -density.log().mean())


def test_three_channels_use_a_scale_a_colour_that_learns():
    pixels = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shifts = torch.tensor([0.0, 0.01, 0.3]).view(1, 3, 1, 1)
    reconstruction = (pixels * 0.5 + shifts).requires_grad_(True)
    loss, value = loss_of(reconstruction, pixels)

    def logit(picture):
        inside = 0.8 * (picture + 1) / 2 + 0.1
        return (inside / (1 - inside)).log()

    inside = 0.8 * (pixels + 1) / 2 + 0.1
    expected = (2 * inside * (1 - inside)).log() + (logit(pixels) - logit(reconstruction)).abs()
    torch.testing.assert_close(value, expected.mean())
    value.backward()
    assert reconstruction.grad.abs().min() > 0
    # The best scale of a Laplace distribution is the mean distance: the gradient vanishes there.
    with torch.no_grad():
        distances = (logit(pixels) - logit(reconstruction)).abs().mean(dim=(0, 2, 3))
        loss.log_scale.copy_(distances.log())
    loss.zero_grad()
    loss(output_of(reconstruction), {"pixels": pixels}).backward()
    torch.testing.assert_close(loss.log_scale.grad, torch.zeros(3), atol=1e-6, rtol=0)


def test_a_reconstruction_far_outside_has_a_gradient_towards_the_pixels():
    reconstruction = torch.full((1, 3, 1, 1), 5.0, requires_grad=True)
    _, value = loss_of(reconstruction, torch.zeros(1, 3, 1, 1))
    value.backward()
    assert torch.isfinite(value)
    assert (reconstruction.grad > 0).all()


def test_every_parameter_has_a_gradient_with_six_channels_too():
    loss, value = loss_of(torch.zeros(1, 6, 2, 2, requires_grad=True), torch.zeros(1, 3, 2, 2))
    value.backward()
    assert torch.equal(loss.log_scale.grad, torch.zeros(3))


def test_clips_are_scored_as_their_frames():
    generator = torch.Generator().manual_seed(0)
    raw, pixels = torch.randn(1, 6, 2, 4, 4, generator=generator), torch.rand(1, 3, 2, 4, 4, generator=generator)
    _, clip = loss_of(raw, pixels)
    frames = [loss_of(raw[:, :, time], pixels[:, :, time])[1] for time in range(2)]
    torch.testing.assert_close(clip, torch.stack(frames).mean())


def test_other_channels_are_refused():
    with pytest.raises(ValueError, match="got 4"):
        loss_of(torch.zeros(1, 4, 2, 2), torch.zeros(1, 3, 2, 2))
