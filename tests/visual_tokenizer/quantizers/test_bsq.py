import math

import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer import build_quantizer

FIELDS = {
    "commitment_weight": 0.3,
    "entropy_weight": 0.7,
    "sample_entropy_weight": 0.9,
    "batch_entropy_weight": 1.1,
}


def group_codes(bits):
    return torch.tensor([[(index >> shift) & 1 for shift in range(bits)] for index in range(2**bits)]).double() * 2 - 1


def published(latents, group, inverse_temperature):
    """The authors' formulas, in float64: a softmax over the codes of each group, summed over groups."""
    u = latents / latents.norm(dim=-1, keepdim=True)
    length = u.shape[-1]
    signs = torch.where(u > 0, 1.0, -1.0).double()
    codes = (u + (signs - u).detach()) / math.sqrt(length)
    commitment = ((codes.detach() - u) ** 2).sum(-1).mean()
    grouped = u.unflatten(-1, (length // group, group))
    scores = 2 * torch.einsum("...gc,dc->...gd", grouped, group_codes(group) / math.sqrt(length))
    probabilities = (scores * inverse_temperature).softmax(-1)
    of_samples = torch.special.entr(probabilities).sum((-1, -2)).mean()
    of_batch = torch.special.entr(probabilities.flatten(0, 1).mean(0)).sum()
    return codes, commitment, of_samples, of_batch


@pytest.mark.parametrize("inverse_temperature", [1.0, 20.0])
@pytest.mark.parametrize("group", [1, 6, 9])
def test_same_as_the_published_formulas(group, inverse_temperature):
    """Values and gradients of codes, commitment and both entropies at 18 bits."""
    latents = torch.randn(2, 30, 18)
    mine, theirs = latents.clone().requires_grad_(), latents.double().requires_grad_()
    quantizer = build_quantizer(
        "bsq", codebook_size=2**18, entropy_group_bits=group, inverse_temperature=inverse_temperature, **FIELDS
    )
    output = quantizer(mine)
    codes, commitment, of_samples, of_batch = published(theirs, group, inverse_temperature)
    torch.testing.assert_close(output.codes, codes.float())
    torch.testing.assert_close(output.losses["commitment"], 0.3 * commitment.float())
    torch.testing.assert_close(output.metrics["sample_entropy"], of_samples.float())
    torch.testing.assert_close(output.metrics["batch_entropy"], of_batch.float())
    assert output.metrics["batch_entropy_groups"] == 18 // group
    entropy = 0.7 * (0.9 * of_samples - 1.1 * of_batch) / inverse_temperature
    torch.testing.assert_close(output.losses["entropy"], entropy.float(), atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(latents)
    ((output.codes * weights).sum() + sum(output.losses.values())).backward()
    ((codes * weights).sum() + 0.3 * commitment + entropy).backward()
    torch.testing.assert_close(mine.grad, theirs.grad.float(), atol=1e-5, rtol=1e-4)


def test_same_as_vector_quantize_pytorch_spherical(monkeypatch):
    """Independent implementation at L = 9: its spherical LFQ, with the clamp inside its logarithm lowered."""
    library = pytest.importorskip("vector_quantize_pytorch.lookup_free_quantization")
    monkeypatch.setattr(library, "log", lambda t: t.clamp(min=1e-30).log())
    reference = library.LFQ(codebook_size=2**9, spherical=True, commitment_loss_weight=1.0)
    latents = torch.randn(2, 40, 9)
    quantizer = build_quantizer("bsq", codebook_size=2**9, inverse_temperature=10.0, commitment_weight=1.0)
    output = quantizer(latents)
    (codes, indices, _), parts = reference(latents, inv_temperature=10.0, return_loss_breakdown=True)
    assert torch.equal(output.indices, indices.long())
    torch.testing.assert_close(output.codes, codes)
    torch.testing.assert_close(quantizer.indices_to_codes(output.indices), reference.indices_to_codes(indices))
    torch.testing.assert_close(output.losses["commitment"], 9 * parts.commitment)  # a sum over channels, not a mean
    torch.testing.assert_close(output.metrics["sample_entropy"], parts.per_sample_entropy)
    torch.testing.assert_close(output.metrics["batch_entropy"], parts.batch_entropy)


def test_codes_are_on_the_sphere_and_the_length_of_latents_does_not_matter():
    """Property; and the gradient is that of u/√L."""
    quantizer = build_quantizer("bsq", codebook_size=2**18, entropy_weight=0.0)
    latents = torch.randn(3, 5, 18)
    output = quantizer(latents)
    torch.testing.assert_close(output.codes.norm(dim=-1), torch.ones(3, 5))
    assert torch.equal(quantizer(latents * 64).codes, output.codes)
    mine, theirs, weights = latents.clone().requires_grad_(), latents.clone().requires_grad_(), torch.randn(3, 5, 18)
    (quantizer(mine).codes * weights).sum().backward()
    (F.normalize(theirs, dim=-1) / math.sqrt(18) * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.parametrize(("order", "index"), [("most_significant_first", 0b1100), ("least_significant_first", 0b0011)])
def test_index_orders(order, index):
    """Closed form; 0 is −1."""
    quantizer = build_quantizer("bsq", codebook_size=16, index_order=order).eval()
    output = quantizer(torch.tensor([[[0.2, 7.0, 0.0, -3.0]]]))
    assert output.indices.item() == index
    assert output.codes.tolist() == [[[0.5, 0.5, -0.5, -0.5]]]
    assert torch.equal(quantizer.indices_to_codes(output.indices), output.codes)


def test_a_group_size_that_does_not_divide_leaves_a_smaller_group():
    """Closed form: all bits equal, half of the tokens each, gives every group nearly ln 2 when it is cold."""
    latents = torch.ones(1, 2, 13)
    latents[0, 1] = -1
    output = build_quantizer("bsq", inverse_temperature=1000.0)(latents)
    assert output.metrics["batch_entropy_groups"] == 2
    assert output.metrics["batch_entropy"].item() == pytest.approx(2 * math.log(2), rel=1e-4)


def test_a_latent_of_zero_has_a_finite_gradient():
    latents = torch.zeros(1, 2, 13, requires_grad=True)
    sum(build_quantizer("bsq")(latents).losses.values()).backward()
    assert torch.isfinite(latents.grad).all()


def test_no_tokens_give_losses_of_zero():
    output = build_quantizer("bsq", commitment_weight=1.0)(torch.zeros(2, 0, 13))
    assert [loss.item() for loss in output.losses.values()] == [0, 0]


def test_bad_fields():
    for field, wrong in (
        ("codebook_size", 2**63),
        ("codebook_size", 48),
        ("inverse_temperature", -1.0),
        ("sample_entropy_weight", -1.0),
        ("entropy_group_bits", 0),
    ):
        with pytest.raises(ValueError, match=f"{field} must be"):
            build_quantizer("bsq", **{field: wrong})
    with pytest.raises(ValueError, match="several codebooks a position"):
        build_quantizer("bsq", codebook_size=2**64)
