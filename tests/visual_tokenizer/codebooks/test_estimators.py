"""Gradients of the assignment, each against the paper's formula written out or an independent implementation."""

import math

import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer import build_quantizer
from visual_tokenizer.codebooks.assignment import Assignment
from visual_tokenizer.codebooks.estimators.base import EstimatorConfig


def assigned(name, latents, codebook, steps=0, noise=None, **fields):
    estimator = EstimatorConfig.family.build({"type": name, **fields})
    indices = estimator.assign(latents.detach(), codebook.detach(), noise)
    assignment = Assignment(latents, codebook, indices, codebook[indices], torch.tensor(steps), noise)
    return estimator, assignment


def pair(tokens=30, size=12, width=5):
    return torch.randn(tokens, width, requires_grad=True), torch.randn(size, width, requires_grad=True)


@pytest.mark.parametrize("name", ["straight_through", "rotation", "index_backpropagation"])
def test_hard_estimators_show_the_decoder_the_code_itself(name):
    latents, codebook = pair()
    estimator, assignment = assigned(name, latents, codebook)
    assert torch.equal(estimator(assignment), codebook[assignment.indices])


def test_synchronised_update_gives_the_codes_their_share_of_the_decoders_gradient():
    """Huh et al. 2023: z + sg(e − z) + ν(e − sg(e))."""
    latents, codebook = pair()
    estimator, assignment = assigned("straight_through", latents, codebook, synchronization=0.3)
    weights = torch.randn(30, 5)
    (estimator(assignment) * weights).sum().backward()
    torch.testing.assert_close(latents.grad, weights)
    expected = torch.zeros_like(codebook).index_add_(0, assignment.indices, 0.3 * weights)
    torch.testing.assert_close(codebook.grad, expected)


def rotation_matrix(source, target):
    """The rotation in the plane of two unit vectors, from its textbook form cos, sin in an orthonormal basis."""
    cosine = source @ target
    second = F.normalize(target - cosine * source, dim=0)
    sine = target @ second
    plane = torch.stack([source, second])
    turn = torch.tensor([[cosine, -sine], [sine, cosine]])
    return torch.eye(len(source)) + plane.T @ (turn - torch.eye(2)) @ plane


def test_rotation_trick_turns_the_gradient_as_the_latent_was_turned():
    """dL/dz = λ Rᵀ dL/de with R the rotation of z/‖z‖ to e/‖e‖ (not a reflection), one matrix per token."""
    latents, codebook = pair()
    estimator, assignment = assigned("rotation", latents, codebook)
    weights = torch.randn(30, 5)
    (estimator(assignment) * weights).sum().backward()
    for row in range(30):
        z, e = latents[row].detach(), codebook[assignment.indices[row]].detach()
        matrix = rotation_matrix(F.normalize(z, dim=0), F.normalize(e, dim=0))
        assert torch.linalg.det(matrix) == pytest.approx(1.0, abs=1e-4)
        expected = e.norm() / z.norm() * matrix.T @ weights[row]
        torch.testing.assert_close(latents.grad[row], expected, atol=1e-5, rtol=1e-4)
        # The angle between gradient and vector is kept.
        before = F.cosine_similarity(weights[row], e, dim=0)
        torch.testing.assert_close(F.cosine_similarity(latents.grad[row], z, dim=0), before, atol=1e-5, rtol=1e-4)


def test_rotation_trick_is_vector_quantize_pytorchs():
    reference = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch")
    latents, codebook = pair()
    estimator, assignment = assigned("rotation", latents, codebook)
    weights = torch.randn(30, 5)
    (mine,) = torch.autograd.grad((estimator(assignment) * weights).sum(), latents)
    rotated = reference.rotate_to(latents, assignment.codes.detach())
    (theirs,) = torch.autograd.grad((rotated * weights).sum(), latents)
    torch.testing.assert_close(estimator(assignment), rotated, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_rotation_is_finite_where_it_is_singular():
    latents = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]], requires_grad=True)
    codes = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    estimator = EstimatorConfig.family.build({"type": "rotation"})
    output = estimator(Assignment(latents, codes, torch.arange(3), codes, torch.tensor(0)))
    output.sum().backward()
    assert torch.equal(output, codes)
    assert torch.isfinite(latents.grad).all()


@pytest.mark.parametrize(("steps", "temperature"), [(0, 2.0), (50, 1.05), (100, 0.1), (1000, 0.1)])
def test_soft_assignment_is_the_softmax_mean_and_its_temperature_falls(steps, temperature):
    latents, codebook = pair()
    fields = {"temperature": 2.0, "final_temperature": 0.1, "anneal_steps": 100}
    estimator, assignment = assigned("soft", latents, codebook, steps=steps, **fields)
    output = estimator(assignment)
    expected = (-torch.cdist(latents, codebook).square() / temperature).softmax(dim=1) @ codebook
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    weights = torch.randn(30, 5)
    mine = torch.autograd.grad((output * weights).sum(), (latents, codebook))
    theirs = torch.autograd.grad((expected * weights).sum(), (latents, codebook))
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


def test_soft_assignment_becomes_hard():
    latents, codebook = pair()
    estimator, assignment = assigned("soft", latents, codebook, final_temperature=1e-4, anneal_steps=0)
    torch.testing.assert_close(estimator(assignment), assignment.codes, atol=1e-4, rtol=1e-4)


def test_index_backpropagation_is_the_one_hot_product():
    """The paper's z_q = (onehot + p − sg(p)) E, dense; gradients to latents and to every code."""
    latents, codebook = pair()
    estimator, assignment = assigned("index_backpropagation", latents, codebook)
    logits = latents @ codebook.T
    soft = logits.softmax(dim=1)
    assert torch.equal(assignment.indices, logits.argmax(dim=1))
    dense = (F.one_hot(assignment.indices, 12) + soft - soft.detach()) @ codebook
    output = estimator(assignment)
    weights = torch.randn(30, 5)
    loss = (output * weights).sum() + estimator.losses(assignment, output)["quantization"]
    expected = (dense * weights).sum() + (dense - latents).square().mean()
    mine = torch.autograd.grad(loss, (latents, codebook))
    theirs = torch.autograd.grad(expected, (latents, codebook))
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert (mine[1].abs().sum(dim=1) > 0).all()


def test_ibq_quantizer_has_the_authors_three_losses():
    """mean((z_q − z)²) both ways, 1·mean((sg(e) − z)²), 0.25·mean((e − sg(z))²)."""
    fields = {
        "codebook_size": 12,
        "code_dim": 5,
        "estimator": {"type": "index_backpropagation"},
        "update": {"type": "gradient"},
        "commitment_weight": 0.25,
        "loss_weighting": "legacy",
    }
    quantizer = build_quantizer("vq", **fields)
    latents = torch.randn(1, 30, 5)
    output = quantizer(latents)
    error = (quantizer.codebook.detach()[output.indices] - latents).square().mean()
    assert sum(output.losses.values()).item() == pytest.approx(2.25 * error.item(), rel=1e-5)
    assert output.losses["commitment"].item() == pytest.approx(error.item(), rel=1e-5)
    with pytest.raises(ValueError, match="update must be 'gradient'"):
        build_quantizer("vq", **{**fields, "update": {"type": "ema"}})


def test_gumbel_draws_codes_with_the_probabilities_of_the_softmax():
    """Gumbel-max: the argmax of logits plus noise is a draw from softmax(logits)."""
    torch.manual_seed(0)
    estimator = EstimatorConfig.family.build({"type": "gumbel"})
    codebook = torch.randn(4, 3)
    latents = torch.randn(1, 3).expand(20000, 3)
    noise = estimator.draw_noise(latents, codebook)
    drawn = estimator.assign(latents, codebook, noise).bincount(minlength=4) / 20000
    expected = (-torch.cdist(latents[:1], codebook).square()).softmax(dim=1)[0]
    torch.testing.assert_close(drawn, expected, atol=0.015, rtol=0)


def test_gumbel_softmax_formula_and_straight_through_form():
    latents, codebook = pair()
    noise = torch.randn(30, 12)
    fields = {"temperature": 0.7, "final_temperature": 0.7}
    estimator, assignment = assigned("gumbel", latents, codebook, noise=noise, **fields)
    logits = -torch.cdist(latents, codebook).square()
    expected = ((logits + noise) / 0.7).softmax(dim=1) @ codebook
    torch.testing.assert_close(estimator(assignment), expected, atol=1e-5, rtol=1e-4)
    hard, assignment = assigned("gumbel", latents, codebook, noise=noise, hard=True, **fields)
    assert torch.equal(hard(assignment), codebook[(logits + noise).argmax(dim=1)])
    weights = torch.randn(30, 5)
    mine = torch.autograd.grad((hard(assignment) * weights).sum(), latents)
    theirs = torch.autograd.grad((expected * weights).sum(), latents)
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)


def test_gumbels_kl_is_that_to_the_uniform_and_grows():
    latents, codebook = pair()
    estimator, assignment = assigned("gumbel", latents, codebook, steps=50, kl_weight=6.6, kl_warmup_steps=100)
    posterior = (-torch.cdist(latents, codebook).square()).softmax(dim=1)
    kl = F.kl_div(torch.full((12,), 1 / 12).log().expand(30, 12), posterior, reduction="batchmean")
    torch.testing.assert_close(estimator.losses(assignment, None)["kl_uniform"], 3.3 * kl)


def test_dvae_quantizer_is_hard_outside_training_and_anneals_to_a_sixteenth():
    torch.manual_seed(0)
    quantizer = build_quantizer("gumbel", codebook_size=9, code_dim=5, anneal_steps=4, kl_weight=1.0, kl_warmup_steps=2)
    latents = torch.randn(2, 7, 5)
    logits = quantizer.to_logits(latents)
    state = torch.get_rng_state()
    output = quantizer(latents)
    assert output.losses["kl_uniform"] == 0  # the first step of its warm-up
    torch.set_rng_state(state)
    noise = -torch.empty(14, 9).exponential_().log()
    expected = (logits.view(14, 9) + noise).softmax(dim=1) @ quantizer.codebook
    torch.testing.assert_close(output.codes.view(14, 5), expected)
    for _ in range(3):
        output = quantizer(latents)
    posterior = logits.softmax(dim=-1)
    kl = (posterior * (posterior * 9).log()).sum(dim=-1).mean()
    torch.testing.assert_close(output.losses["kl_uniform"], kl)
    torch.set_rng_state(state)
    output = quantizer(latents)
    expected = ((logits.view(14, 9) + noise) * 16).softmax(dim=1) @ quantizer.codebook
    torch.testing.assert_close(output.codes.view(14, 5), expected, atol=1e-5, rtol=1e-4)
    quantizer.eval()
    assert torch.equal(quantizer(latents).indices, logits.argmax(dim=-1))


def test_temperature_schedule_is_half_a_cosine():
    from visual_tokenizer.codebooks.annealing import cosine_annealed, linear_warmup

    for step in (0, 37500, 75000, 150000, 200000):
        expected = 1 / 16 + (1 - 1 / 16) * (1 + math.cos(math.pi * min(step / 150000, 1))) / 2
        assert cosine_annealed(1.0, 1 / 16, 150000, torch.tensor(step)).item() == pytest.approx(expected, abs=1e-6)
        assert linear_warmup(5000, torch.tensor(step)).item() == pytest.approx(min(step / 5000, 1))
    assert cosine_annealed(1.0, 0.5, 0, torch.tensor(0)).item() == 0.5
