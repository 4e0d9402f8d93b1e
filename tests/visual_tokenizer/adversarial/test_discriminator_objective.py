from __future__ import annotations

import pytest
import torch
from torch import nn

from visual_tokenizer.adversarial_losses.base import AdversarialLossConfig
from visual_tokenizer.training.adversarial import DiscriminatorObjective, LeCam, gradient_penalty
from visual_tokenizer.training.recipe import AdversarialSection


class Quadratic(nn.Module):
    """Two judges: a·Σx² and Σx."""

    judges = 2

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, pixels):
        flat = pixels.flatten(1)
        return [self.factor * flat.square().sum(1), flat.sum(1, keepdim=True)]


def objective(**fields):
    loss = AdversarialLossConfig.family.build({"type": "hinge"})
    return DiscriminatorObjective(Quadratic(), loss, AdversarialSection(**fields))


def test_lecam_follows_the_formula():
    lecam = LeCam(2, decay=0.75)
    lecam.update(torch.tensor([[4.0, 8.0], [-4.0, -2.0]]))
    lecam.update(torch.tensor([[4.0, 0.0], [0.0, -2.0]]))
    assert lecam.real.tolist() == [0.75 * 1 + 0.25 * 4, 0.75 * 2]
    assert lecam.fake.tolist() == [-0.75, -0.75 * 0.5 - 0.5]
    real, fake = [torch.tensor([-2.0, 1.25]), torch.tensor([0.0])], [torch.tensor([0.75]), torch.tensor([2.0, 1.0])]
    first = ((0 + (1.25 + 0.75) ** 2) / 2) + (1.75 - 0.75) ** 2
    second = (0.875**2) + (0 + 0.5**2) / 2
    assert float(lecam(real, fake)) == pytest.approx((first + second) / 2)
    assert set(lecam.state_dict()) == {"real", "fake"}


def test_the_loss_is_the_mean_over_judges_and_what_is_added():
    pixels, fake = torch.randn(3, 3, 2, 2), torch.randn(3, 3, 2, 2)
    plain, means, values = objective()(pixels, fake, False)
    hinge = AdversarialLossConfig.family.build({"type": "hinge"})
    judge = Quadratic()
    terms = [hinge.discriminator(a, b) for a, b in zip(judge(pixels), judge(fake), strict=True)]
    assert float(plain) == pytest.approx(float(sum(terms) / 2), rel=1e-5)
    assert torch.allclose(means, torch.stack([torch.stack([x.mean() for x in judge(y)]) for y in (pixels, fake)]))
    assert set(values) == {
        "loss/discriminator", "discriminator/real_logits", "discriminator/fake_logits", "discriminator/accuracy",
    }  # fmt: skip
    right = [(judge(pixels)[0] > 0), (judge(pixels)[1] > 0), (judge(fake)[0] <= 0), (judge(fake)[1] <= 0)]
    assert float(values["discriminator/accuracy"]) == pytest.approx(
        float(torch.stack([r.float().mean() for r in right]).mean())
    )

    whole = objective(lecam_weight=0.5, r1_weight=2.0, r1_every_steps=4)
    loss, _, values = whole(pixels, fake, True)
    added = 0.5 * values["discriminator/lecam"] + 2.0 / 2 * 4 * values["discriminator/r1"]
    assert float(loss - plain) == pytest.approx(float(added), rel=1e-4)
    assert float(added) > 0


def test_r1_is_the_squared_gradient_and_trains_the_discriminator():
    judge, pixels = Quadratic(), torch.randn(3, 3, 2, 2)
    penalty = gradient_penalty(judge, pixels)
    # D = (a Σx² + Σx) / 2, so ∇D = a x + ½, with a = ½
    wanted = (0.5 * pixels + 0.5).square().flatten(1).sum(1).mean()
    assert float(penalty) == pytest.approx(float(wanted), rel=1e-5)
    penalty.backward()
    slope = (2 * (0.5 * pixels + 0.5) * pixels).flatten(1).sum(1).mean()
    assert float(judge.factor.grad) == pytest.approx(float(slope), rel=1e-4)


@pytest.mark.parametrize(("field", "value"), [
    ("weight", -1), ("start_step", -1), ("warmup_steps", -1), ("discriminator_warmup_steps", -1),
    ("lecam_weight", float("nan")), ("lecam_decay", 1.0), ("learning_rate", 0.0), ("betas", [0.5]), ("r1_weight", -1),
    ("r1_every_steps", 0),
])  # fmt: skip
def test_wrong_values_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must (be|hold) .*got"):
        AdversarialSection(**{field: value})


def test_the_discriminator_starts_before_the_generators_term_which_then_grows():
    section = AdversarialSection(start_step=10, warmup_steps=4, discriminator_warmup_steps=3)
    assert section.discriminator_start == 7
    assert [section.share(step) for step in (0, 9, 10, 11, 12, 13, 99)] == [0, 0, 0.25, 0.5, 0.75, 1, 1]
    at_once = AdversarialSection(start_step=2, discriminator_warmup_steps=5)
    assert (at_once.discriminator_start, at_once.share(1), at_once.share(2)) == (0, 0, 1)
