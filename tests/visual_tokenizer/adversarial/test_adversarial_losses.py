from __future__ import annotations

import math

import pytest
import torch

from visual_tokenizer.adversarial_losses.base import AdversarialLossConfig

REAL, FAKE = torch.tensor([-0.5, 0.25, 2.0]), torch.tensor([-3.0, 0.5])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def build(name):
    return AdversarialLossConfig.family.build({"type": name})


def test_hinge():
    loss = build("hinge")
    assert float(loss.discriminator(REAL, FAKE)) == pytest.approx(((1.5 + 0.75 + 0) / 3 + (0 + 1.5) / 2) / 2)
    assert float(loss.generator(FAKE)) == pytest.approx(2.5 / 2)


def test_non_saturating():
    loss = build("non_saturating")
    real = -sum(math.log(sigmoid(value)) for value in REAL.tolist()) / 3
    fake = -sum(math.log(1 - sigmoid(value)) for value in FAKE.tolist()) / 2
    assert float(loss.discriminator(REAL, FAKE)) == pytest.approx((real + fake) / 2, rel=1e-5)
    generator = -sum(math.log(sigmoid(value)) for value in FAKE.tolist()) / 2
    assert float(loss.generator(FAKE)) == pytest.approx(generator, rel=1e-5)


def test_least_squares():
    loss = build("least_squares")
    real = (1.5**2 + 0.75**2 + 1) / 3
    assert float(loss.discriminator(REAL, FAKE)) == pytest.approx((real + (9 + 0.25) / 2) / 2)
    assert float(loss.generator(FAKE)) == pytest.approx((16 + 0.25) / 2 / 2)


@pytest.mark.parametrize("name", AdversarialLossConfig.family.names())
def test_the_two_sides_pull_apart(name):
    loss = build(name)
    real, fake = (torch.full((4,), loss.boundary, requires_grad=True) for _ in range(2))
    loss.discriminator(real, fake).backward()
    assert (real.grad < 0).all()  # following it down raises the logits of real pictures …
    assert (fake.grad > 0).all()  # … and lowers those of reconstructions,
    fake.grad = None
    loss.generator(fake).backward()
    assert (fake.grad < 0).all()  # which the generator raises
