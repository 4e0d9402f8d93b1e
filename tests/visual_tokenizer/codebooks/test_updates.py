import pytest
import torch
from torch import nn

from visual_tokenizer import build_quantizer


def vq(**fields):
    torch.manual_seed(0)
    return build_quantizer("vq", **{"codebook_size": 16, "code_dim": 4, **fields})


def test_alternating_update_is_sgd_on_the_codebook_loss():
    """torch's own SGD with momentum on mean(‖sg(z) − e_k‖²), before the codes are looked up."""
    quantizer = vq(update={"type": "alternating", "learning_rate": 3.0, "momentum": 0.9, "inner_steps": 2})
    table = nn.Parameter(quantizer.codebook.data.clone())
    optimizer = torch.optim.SGD([table], lr=3.0, momentum=0.9)
    for _ in range(3):
        latents = torch.randn(2, 9, 4)
        output = quantizer(latents)
        for _ in range(2):
            optimizer.zero_grad()
            (table[output.indices] - latents).square().mean().backward()
            optimizer.step()
        torch.testing.assert_close(quantizer.codebook.data, table.data, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(output.codes, table.data[output.indices], atol=1e-5, rtol=1e-4)


def test_frozen_codes_stay_where_the_initializer_put_them():
    quantizer = vq(update={"type": "frozen"}, initializer={"type": "kmeans"})
    quantizer(torch.randn(2, 50, 4))
    before = quantizer.codebook.data.clone()
    output = quantizer(torch.randn(2, 50, 4).requires_grad_())
    assert torch.equal(quantizer.codebook.data, before)
    assert not quantizer.codebook.requires_grad
    assert set(output.losses) == {"commitment"}


def test_legacy_weighting_swaps_the_two_weights():
    """The first VQGAN code: 1·mean((sg(e) − z)²) + β·mean((e − sg(z))²)."""
    latents = torch.randn(2, 9, 4)
    paper = vq(update={"type": "gradient"}, commitment_weight=0.25)(latents).losses
    legacy = vq(update={"type": "gradient"}, commitment_weight=0.25, loss_weighting="legacy")(latents).losses
    torch.testing.assert_close(legacy["commitment"], paper["codebook"])
    torch.testing.assert_close(legacy["codebook"], paper["commitment"])
    torch.testing.assert_close(paper["commitment"] * 4, paper["codebook"])


@pytest.mark.parametrize("update", ["ema", "alternating", "frozen"])
def test_a_geometry_regularizer_needs_codes_that_learn_by_gradient(update):
    with pytest.raises(ValueError, match="regularizer 'norm' shapes the codebook: update must be 'gradient'"):
        vq(update={"type": update}, regularizers=[{"type": "norm"}])


def test_regularizers_are_added_with_their_weights():
    quantizer = vq(
        update={"type": "gradient"},
        regularizers=[{"type": "norm", "weight": 0.5}, {"type": "kl_uniform", "weight": 2.0}],
    )
    output = quantizer(torch.randn(2, 9, 4))
    assert set(output.losses) == {"commitment", "codebook", "norm", "kl_uniform"}
    twice = vq(
        update={"type": "gradient"},
        regularizers=[{"type": "norm", "weight": 1.0}, {"type": "kl_uniform", "weight": 2.0}],
    )
    torch.manual_seed(1)
    latents = torch.randn(2, 9, 4)
    torch.testing.assert_close(twice(latents).losses["norm"], 2 * quantizer(latents).losses["norm"])
    with pytest.raises(ValueError, match="different types, got norm, norm"):
        vq(update={"type": "gradient"}, regularizers=[{"type": "norm"}, {"type": "norm"}])
