import pytest
import torch

from visual_tokenizer import build_quantizer
from visual_tokenizer.errors import IndexOutOfRangeError
from visual_tokenizer.quantizers import base as quantizer_base
from visual_tokenizer.quantizers.base import part_metrics

VQ = {"type": "vq", "codebook_size": 16, "code_dim": 4}
FROZEN = {**VQ, "update": {"type": "frozen"}}
GRADIENT = {**VQ, "update": {"type": "gradient"}}
BASES = {
    "vq": VQ,
    "normalized vq": {**GRADIENT, "normalize": True},
    "rotation": {**GRADIENT, "estimator": {"type": "rotation"}},
    "fsq": {"type": "fsq", "levels": [5, 4]},
    "lfq": {"type": "lfq", "codebook_size": 8},
    "bsq": {"type": "bsq", "codebook_size": 8},
    "gumbel": {"type": "gumbel", "codebook_size": 8, "code_dim": 4},
    "relaxed_binary": {"type": "relaxed_binary", "codebook_size": 8},
    "dual": {"type": "dual", "codebook_size": 8, "semantic_dim": 2, "pixel_dim": 2},
    "product": {"type": "product", "base": VQ},
    "multi_scale": {"type": "multi_scale", "base": GRADIENT, "scales": [1, 2]},
}


def residual(**fields):
    torch.manual_seed(0)
    return build_quantizer("residual", **{"base": VQ, "depth": 3, **fields})


def latents_for(quantizer, batch=3):
    length = 7 if quantizer.latent_grid is None else 4
    return torch.randn(batch, length, quantizer.code_dim, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_any_base_composes(name, shared):
    quantizer = residual(base=BASES[name], depth=2, shared=shared, level_scale=0.5)
    latents = latents_for(quantizer).requires_grad_()
    output = quantizer(latents)
    (output.codes * torch.randn_like(latents)).sum().backward()
    assert latents.grad.abs().sum() > 0
    assert output.indices.shape[2] == quantizer.num_codebooks
    quantizer.eval()
    output = quantizer(latents)
    assert torch.equal(quantizer.indices_to_codes(output.indices), output.codes)


def test_codes_are_those_of_the_levels_one_after_the_other():
    """Section 3.1: each level takes the code nearest to what is left, by brute force."""
    quantizer = residual().eval()
    latents = latents_for(quantizer)
    output = quantizer(latents)
    left, total = latents, torch.zeros_like(latents)
    for level in range(3):
        table = quantizer.parts[level].vectors.detach()
        nearest = torch.cdist(left.flatten(0, 1), table).argmin(1).view(3, 7)
        assert torch.equal(output.indices[..., level], nearest)
        left, total = left - table[nearest], total + table[nearest]
        prefix = quantizer.indices_to_codes(output.indices[..., : level + 1])
        torch.testing.assert_close(prefix, total)
    torch.testing.assert_close(output.metrics["quantization_error"], left.square().sum() / 21)


def test_commitment_is_the_mean_over_prefixes_and_codes_are_straight_through_once():
    """The authors' formula: mean over d of mean((x − sg(sum of d codes))²), and d codes / d x = 1."""
    quantizer = residual(base={**FROZEN, "commitment_weight": 0.25})
    latents = latents_for(quantizer).requires_grad_()
    again = latents.detach().clone().requires_grad_()
    output = quantizer(latents)
    prefixes = [quantizer.indices_to_codes(output.indices[..., :n]) for n in (1, 2, 3)]
    expected = 0.25 * torch.stack([(again - prefix).square().mean() for prefix in prefixes]).mean()
    torch.testing.assert_close(output.losses["commitment"], expected)
    weights = torch.randn_like(latents)
    (output.losses["commitment"] + (output.codes * weights).sum()).backward()
    (expected + (again * weights).sum()).backward()
    torch.testing.assert_close(latents.grad, again.grad)


@pytest.mark.parametrize("shared", [False, True])
def test_same_as_vector_quantize_pytorch(shared):
    """Indices, codes, the losses of levels and the moved codebooks; it passes depth times the codes' gradient."""
    library = pytest.importorskip("vector_quantize_pytorch")
    quantizer = residual(base={**VQ, "update": {"type": "ema", "decay": 0.8}, "commitment_weight": 1.0}, shared=shared)
    reference = library.ResidualVQ(
        dim=4, num_quantizers=3, codebook_size=16, decay=0.8, rotation_trick=False, shared_codebook=shared
    )
    for level, theirs in zip(quantizer.levels, reference.layers, strict=True):
        theirs._codebook.embed.data.copy_(level.codebook.data[None])
        theirs._codebook.embed_avg.data.copy_(level.codebook.data[None])
        theirs._codebook.cluster_size.data.fill_(1.0)
    latents = torch.randn(2, 40, 4)
    mine, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    # It moves a shared codebook once, after the last level; this one moves with each, as RQ-VAE's does.
    quantizer.train(not shared)
    reference.train(not shared)
    output = quantizer(mine)
    codes, indices, losses = reference(theirs)
    assert torch.equal(output.indices, indices)
    torch.testing.assert_close(output.codes, codes, atol=1e-6, rtol=1e-5)
    weights = torch.randn_like(codes)
    if shared:
        return
    torch.testing.assert_close(output.losses["commitment"], losses.mean())
    gradient = torch.autograd.grad((output.codes * weights).sum(), mine, retain_graph=True)[0]
    expected = torch.autograd.grad((codes * weights).sum(), theirs, retain_graph=True)[0]
    torch.testing.assert_close(3 * gradient, expected)
    gradient = torch.autograd.grad(output.losses["commitment"], mine)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(losses.mean(), theirs)[0])
    for level, other in zip(quantizer.levels, reference.layers, strict=True):
        torch.testing.assert_close(level.codebook.data, other._codebook.embed[0], atol=1e-5, rtol=1e-4)


def test_residual_fsq_same_as_vector_quantize_pytorch():
    library = pytest.importorskip("vector_quantize_pytorch")
    levels = [8, 5, 4]
    quantizer = residual(
        base={"type": "fsq", "levels": levels, "grid": "symmetric"}, level_scale=[1 / level for level in levels]
    )
    reference = library.ResidualFSQ(levels=levels, num_quantizers=3, dim=3, bound_hard_clamp=False)
    latents = torch.randn(2, 50, 3)
    mine, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    output = quantizer(mine)
    codes, indices = reference(theirs)
    assert torch.equal(output.indices, indices.long())
    torch.testing.assert_close(output.codes, codes)
    weights = torch.randn_like(codes)
    (output.codes * weights).sum().backward()
    (codes * weights).sum().backward()
    torch.testing.assert_close(3 * mine.grad, theirs.grad)


def test_residual_lfq_same_as_vector_quantize_pytorch():
    library = pytest.importorskip("vector_quantize_pytorch")
    quantizer = residual(base={"type": "lfq", "codebook_size": 16}, level_scale=0.5).eval()
    reference = library.ResidualLFQ(dim=4, codebook_size=16, num_quantizers=3).eval()
    latents = torch.randn(2, 50, 4)
    codes, indices, _ = reference(latents)
    output = quantizer(latents)
    assert torch.equal(output.indices, indices.long())
    torch.testing.assert_close(output.codes, codes)


def test_each_level_of_half_the_scale_halves_the_error_of_signs():
    latents = torch.rand(1, 500, 4) * 4 - 2
    for depth in (1, 3, 5):
        quantizer = residual(base={"type": "lfq", "codebook_size": 16}, level_scale=0.5, depth=depth).eval()
        assert (quantizer(latents).codes - latents).abs().max() <= 2.0 ** (1 - depth)


def test_one_level_is_the_base_itself():
    quantizer = residual(depth=1).eval()
    latents = latents_for(quantizer)
    alone, composed = quantizer.parts[0](latents), quantizer(latents)
    assert torch.equal(alone.indices, composed.indices)
    assert torch.equal(alone.codes, composed.codes)


def test_a_shared_codebook_is_one_and_learns_at_every_level():
    """RQ-VAE: one EMA step a level and forward, each level looking into the codebook as the last one left it."""
    quantizer = residual(shared=True)
    twin = build_quantizer("vq", **{key: value for key, value in VQ.items() if key != "type"})
    twin.load_state_dict(quantizer.parts[0].state_dict())
    latents = latents_for(quantizer)
    output = quantizer(latents)
    left = latents
    for level in range(3):
        one = twin(left)
        assert torch.equal(one.indices, output.indices[..., level])
        left = left - one.codes
    assert torch.equal(twin.codebook.data, quantizer.parts[0].codebook.data)
    assert len([key for key in quantizer.state_dict() if key.endswith(".codebook")]) == 1


def test_quantizer_dropout_keeps_the_first_levels(monkeypatch):
    quantizer = residual(base=FROZEN, depth=4, quantizer_dropout=0.5)
    latents = latents_for(quantizer).requires_grad_()
    whole = quantizer.eval()(latents)
    quantizer.train()
    for draws, kept in (((0.4, 0.0), 1), ((0.4, 0.6), 3), ((0.4, 0.999), 4), ((0.5, 0.0), 4)):
        # The draw passes a broadcast, so that every rank keeps as many.
        monkeypatch.setattr(quantizer_base, "broadcast_from_first_rank", lambda _, draws=draws: torch.tensor(draws))
        output = quantizer(latents)
        assert torch.equal(output.indices, whole.indices)
        assert torch.equal(output.codes, quantizer.indices_to_codes(whole.indices[..., :kept]))
        torch.testing.assert_close(output.losses["commitment"], whole.losses["commitment"])
        gradient = torch.autograd.grad(output.codes.sum(), latents)[0]
        torch.testing.assert_close(gradient, torch.ones_like(latents))


def test_quantizer_dropout_draws_every_number_of_levels_evenly():
    torch.manual_seed(0)
    drawn = torch.stack([quantizer_base.draw_levels(4, 0.5, torch.device("cpu")) for _ in range(2000)])
    shares = drawn.bincount(minlength=5) / 2000
    torch.testing.assert_close(shares, torch.tensor([0, 0.125, 0.125, 0.125, 0.625]), atol=0.03, rtol=0)


@pytest.mark.parametrize("shared", [False, True])
def test_first_codes_come_from_each_levels_residuals(shared):
    start = {"type": "kmeans", "samples": 200, "iterations": 5}
    quantizer = residual(base={**GRADIENT, "initializer": start}, shared=shared)
    assert quantizer.samples_wanted == 200
    pool = torch.randn(600, 4, generator=torch.Generator().manual_seed(2)) * 3
    quantizer.initialize(pool)
    assert quantizer.samples_wanted == 0
    assert all(module.training for module in quantizer.modules())
    quantizer.eval()
    indices = quantizer(pool[None]).indices
    errors = [(quantizer.indices_to_codes(indices[..., :n]) - pool).square().sum(-1).mean().item() for n in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.5 * errors[0]
    trained = residual(base={**GRADIENT, "initializer": start}, shared=shared)
    trained(pool[None])
    for mine, theirs in zip(trained.parts, quantizer.parts, strict=True):
        torch.testing.assert_close(mine.codebook, theirs.codebook)


def test_codes_that_learn_from_the_decoder_get_its_gradient_over_depth():
    quantizer = residual(base={**GRADIENT, "estimator": {"type": "straight_through", "synchronization": 1.0}})
    output = quantizer(latents_for(quantizer))
    weights = torch.randn_like(output.codes)
    (output.codes * weights).sum().backward()
    for level in range(3):
        expected = torch.zeros(16, 4).index_add_(0, output.indices[..., level].flatten(), weights.view(-1, 4) / 3)
        torch.testing.assert_close(quantizer.parts[level].codebook.grad, expected)


def test_metrics_of_parts_are_averaged_and_numbered():
    one, two = {"usage": torch.tensor(0.5), "usage_0": torch.tensor(0.1)}, {"usage": torch.tensor(1.0)}
    merged = part_metrics([one, {**two, "temperature": torch.tensor(3.0)}])
    assert {name: round(value.item(), 3) for name, value in merged.items()} == {
        "usage": 0.75,
        "temperature": 3.0,
        "usage_0": 0.5,
        "usage_0_0": 0.1,
        "usage_1": 1.0,
    }


def test_compiles_in_one_graph():
    torch.compiler.reset()
    quantizer = residual(depth=2, quantizer_dropout=0.5)
    twin = residual(depth=2, quantizer_dropout=0.5)
    latents = latents_for(quantizer)
    torch.manual_seed(3)
    expected = quantizer(latents)
    torch.manual_seed(3)
    found = torch.compile(twin, fullgraph=True, backend="aot_eager")(latents)
    assert torch.equal(expected.indices, found.indices)
    torch.testing.assert_close(expected.codes, found.codes)
    assert torch.equal(quantizer.parts[1].codebook, twin.parts[1].codebook)


def test_bad_fields_and_indices():
    for fields, name in (
        ({"depth": 0}, "depth"),
        ({"level_scale": 0.0}, "level_scale"),
        ({"level_scale": [0.5, 0.5]}, "level_scale"),
        ({"quantizer_dropout": 1.5}, "quantizer_dropout"),
    ):
        with pytest.raises(ValueError, match=name):
            residual(**fields)
    quantizer = residual(base={"type": "product", "base": VQ}, depth=2)
    for wrong in (1, 3, 6):
        with pytest.raises(IndexOutOfRangeError, match="levels of 2, 4 at most"):
            quantizer.indices_to_codes(torch.zeros(1, 2, wrong, dtype=torch.int64))
