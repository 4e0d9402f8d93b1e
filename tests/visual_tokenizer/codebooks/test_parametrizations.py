import pytest
import torch
from torch import nn

from visual_tokenizer import build_quantizer
from visual_tokenizer.codebooks.parametrizations.base import ParametrizationConfig


def vq(**fields):
    torch.manual_seed(0)
    return build_quantizer("vq", **{"codebook_size": 16, "code_dim": 4, "update": {"type": "gradient"}, **fields})


def test_simvq_is_vector_quantize_pytorchs():
    """Same indices, codes, loss and gradients; the table is frozen and the matrix moves every code."""
    module = pytest.importorskip("vector_quantize_pytorch")
    quantizer = vq(parametrization={"type": "simvq", "bias": False}, commitment_weight=0.25)
    reference = module.SimVQ(4, 16, rotation_trick=False, input_to_quantize_commit_loss_weight=0.25)
    reference.frozen_codebook.copy_(quantizer.codebook.data)
    reference.code_transform.weight.data.copy_(quantizer.parametrization.linear.weight.data)
    latents = torch.randn(2, 9, 4)
    mine, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    output = quantizer(mine)
    codes, indices, loss = reference(theirs)
    assert torch.equal(output.indices, indices)
    torch.testing.assert_close(output.codes, codes)
    torch.testing.assert_close(sum(output.losses.values()), loss)
    weights = torch.randn(2, 9, 4)
    ((output.codes * weights).sum() + sum(output.losses.values())).backward()
    ((codes * weights).sum() + loss).backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(quantizer.parametrization.linear.weight.grad, reference.code_transform.weight.grad)
    assert not quantizer.codebook.requires_grad
    torch.testing.assert_close(quantizer.vectors, reference.codebook)


def test_one_step_of_simvq_moves_the_codes_that_nobody_chose():
    quantizer = vq(parametrization={"type": "simvq"})
    before = quantizer.vectors.detach().clone()
    output = quantizer(torch.randn(1, 3, 4))
    sum(output.losses.values()).backward()
    torch.optim.SGD([p for p in quantizer.parameters() if p.requires_grad], lr=0.1).step()
    assert ((quantizer.vectors - before).abs().sum(dim=1) > 0).all()


def test_affine_is_a_shared_scale_and_shift():
    """Huh et al. 2023, as their code has it: (1 + r·s)·table + r·b, here in two groups."""
    quantizer = vq(parametrization={"type": "affine", "learning_rate_ratio": 2.0, "groups": 2})
    assert torch.equal(quantizer.vectors, quantizer.codebook)
    part = quantizer.parametrization
    nn.init.normal_(part.scale)
    nn.init.normal_(part.shift)
    for group, rows in enumerate((slice(0, 8), slice(8, 16))):
        expected = (1 + 2 * part.scale[group]) * quantizer.codebook[rows] + 2 * part.shift[group]
        torch.testing.assert_close(quantizer.vectors[rows], expected)
    torch.testing.assert_close(part(part.invert(quantizer.codebook)), quantizer.codebook, atol=1e-4, rtol=1e-3)
    sum(quantizer(torch.randn(1, 3, 4)).losses.values()).backward()
    assert part.scale.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="groups must divide codebook_size 16, got 3"):
        vq(parametrization={"type": "affine", "groups": 3})


def test_matched_moments_gives_the_codes_the_latents_mean_and_spread():
    quantizer = vq(codebook_size=512, parametrization={"type": "matched_moments"})
    latents = torch.randn(4, 100, 4) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 5
    quantizer(latents)
    codes, flat = quantizer.vectors, latents.view(-1, 4)
    torch.testing.assert_close(codes.mean(0), flat.mean(0), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(codes.std(0, unbiased=False), flat.std(0, unbiased=False), atol=1e-3, rtol=1e-3)
    table = quantizer.codebook.data
    torch.testing.assert_close(quantizer.parametrization.invert(codes), table, atol=1e-4, rtol=1e-3)
    quantizer(latents * 0)
    variance = 0.99 * flat.var(0, unbiased=False)
    torch.testing.assert_close(quantizer.parametrization.latent_variance, variance)


def test_matched_moments_is_vector_quantize_pytorchs_affine():
    module = pytest.importorskip("vector_quantize_pytorch")
    quantizer = vq(parametrization={"type": "matched_moments"})
    reference = module.VectorQuantize(
        dim=4,
        codebook_size=16,
        affine_param=True,
        affine_param_batch_decay=0.99,
        affine_param_codebook_decay=0.9,
        learnable_codebook=True,
        ema_update=False,
        rotation_trick=False,
    )
    reference._codebook.embed.data.copy_(quantizer.codebook.data[None])
    for step in range(3):
        latents = torch.randn(2, 40, 4) * (1 + step) + 1
        output, (codes, indices, _) = quantizer(latents), reference(latents)
        assert torch.equal(output.indices, indices), step
        torch.testing.assert_close(output.codes, codes, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["simvq", "affine", "matched_moments"])
def test_what_learns_by_gradient_refuses_moving_averages(name):
    with pytest.raises(ValueError, match=f"parametrization '{name}' learns by gradient"):
        vq(parametrization={"type": name}, update={"type": "ema"})


def test_a_frozen_table_refuses_what_would_write_it():
    for fields in ({"reseeder": {"type": "random"}}, {"initializer": {"type": "kmeans"}}):
        with pytest.raises(ValueError, match="keeps its table"):
            vq(parametrization={"type": "simvq"}, **fields)


@pytest.mark.parametrize("name", ParametrizationConfig.family.names())
def test_save_and_load(name):
    fields = {"parametrization": {"type": name}}
    quantizer = vq(**fields)
    quantizer(torch.randn(2, 20, 4))
    twin = vq(**fields)
    twin.load_state_dict(quantizer.state_dict())
    assert torch.equal(twin.vectors, quantizer.vectors)
