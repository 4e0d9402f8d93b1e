import pytest
import torch

from visual_tokenizer import build_quantizer

VQ = {"type": "vq", "codebook_size": 16, "code_dim": 4}
BASES = {
    "vq": VQ,
    "fsq": {"type": "fsq", "levels": [5, 4]},
    "lfq": {"type": "lfq", "codebook_size": 8},
    "bsq": {"type": "bsq", "codebook_size": 8},
    "gumbel": {"type": "gumbel", "codebook_size": 8, "code_dim": 4},
    "dual": {"type": "dual", "codebook_size": 8, "semantic_dim": 2, "pixel_dim": 2},
    "residual": {"type": "residual", "base": VQ, "depth": 2},
    "multi_scale": {"type": "multi_scale", "base": VQ, "scales": [1, [2, 3]]},
}


def product(**fields):
    torch.manual_seed(0)
    return build_quantizer("product", **{"base": VQ, "groups": 3, **fields})


def latents_for(quantizer, batch=2):
    length = 7 if quantizer.latent_grid is None else 6
    return torch.randn(batch, length, quantizer.code_dim, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BASES)
def test_groups_are_their_quantizers_side_by_side(name):
    quantizer = product(base=BASES[name]).eval()
    latents = latents_for(quantizer).requires_grad_()
    output = quantizer(latents)
    groups = [part(group) for part, group in zip(quantizer.parts, latents.chunk(3, dim=2), strict=True)]
    assert torch.equal(output.codes, torch.cat([group.codes for group in groups], dim=2))
    several = [group.indices if group.indices.ndim == 3 else group.indices[..., None] for group in groups]
    assert torch.equal(output.indices, torch.cat(several, dim=2))
    assert output.indices.shape[2] == quantizer.num_codebooks
    assert torch.equal(quantizer.indices_to_codes(output.indices), output.codes)
    for loss, value in output.losses.items():
        torch.testing.assert_close(value, torch.stack([group.losses[loss] for group in groups]).mean())
    quantizer.train()(latents).codes.sum().backward()
    assert (latents.grad.abs().sum(dim=(0, 1)) > 0).any()


@pytest.mark.parametrize("name", ["vq", "residual", "multi_scale"])
def test_a_shared_quantizer_gives_each_group_what_it_gives_alone(name):
    quantizer = product(base=BASES[name], shared=True).eval()
    latents = latents_for(quantizer)
    output = quantizer(latents)
    alone = [quantizer.parts[0](group) for group in latents.chunk(3, dim=2)]
    assert torch.equal(output.codes, torch.cat([group.codes for group in alone], dim=2))
    assert torch.equal(quantizer.indices_to_codes(output.indices), output.codes)
    assert len(quantizer.parts) == 1


def test_a_shared_codebook_learns_from_all_groups_at_once():
    quantizer = product(shared=True)
    twin = build_quantizer("vq", codebook_size=16, code_dim=4)
    twin.load_state_dict(quantizer.parts[0].state_dict())
    latents = latents_for(quantizer)
    quantizer(latents)
    twin(torch.cat(latents.chunk(3, dim=2)))
    assert torch.equal(twin.codebook.data, quantizer.parts[0].codebook.data)


def test_product_of_residuals_same_as_vector_quantize_pytorch():
    library = pytest.importorskip("vector_quantize_pytorch")
    fields = {"update": {"type": "ema", "decay": 0.8}, "commitment_weight": 1.0}
    quantizer = product(groups=2, base={"type": "residual", "base": {**VQ, **fields}, "depth": 3})
    reference = library.GroupedResidualVQ(
        dim=8, groups=2, num_quantizers=3, codebook_size=16, decay=0.8, rotation_trick=False
    )
    for part, others in zip(quantizer.parts, reference.rvqs, strict=True):
        for level, theirs in zip(part.levels, others.layers, strict=True):
            theirs._codebook.embed.data.copy_(level.codebook.data[None])
            theirs._codebook.embed_avg.data.copy_(level.codebook.data[None])
            theirs._codebook.cluster_size.data.fill_(1.0)
    latents = torch.randn(2, 40, 8)
    mine, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    output = quantizer(mine)
    codes, indices, losses = reference(theirs)
    assert torch.equal(output.indices, torch.cat(list(indices), dim=2))
    torch.testing.assert_close(output.codes, codes, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(output.losses["commitment"], losses.mean())
    weights = torch.randn_like(codes)
    (output.codes * weights).sum().backward(retain_graph=True)
    (codes * weights).sum().backward(retain_graph=True)
    torch.testing.assert_close(3 * mine.grad, theirs.grad)  # its residual levels add their gradients up
    for part, others in zip(quantizer.parts, reference.rvqs, strict=True):
        for level, other in zip(part.levels, others.layers, strict=True):
            torch.testing.assert_close(level.codebook.data, other._codebook.embed[0], atol=1e-5, rtol=1e-4)


def test_product_of_fsqs_same_as_vector_quantize_pytorch():
    library = pytest.importorskip("vector_quantize_pytorch")
    quantizer = product(base={"type": "fsq", "levels": [8, 5]})
    latents = torch.randn(2, 40, 6)
    codes, indices = library.FSQ([8, 5], num_codebooks=3)(latents)
    output = quantizer(latents)
    assert torch.equal(output.indices, indices.long())
    torch.testing.assert_close(output.codes, codes)


def test_losses_are_the_mean_over_all_channels():
    quantizer = product()
    latents = latents_for(quantizer)
    output = quantizer(latents)
    expected = 0.25 * (latents - output.codes).square().mean()
    torch.testing.assert_close(output.losses["commitment"], expected)


def test_bases_of_different_kinds_and_widths():
    quantizer = product(groups=2, bases=[{"type": "fsq", "levels": [4, 4]}, VQ])
    assert quantizer.code_dim == 6
    latents = latents_for(quantizer)
    output = quantizer(latents)
    assert torch.equal(output.codes[..., :2], quantizer.parts[0](latents[..., :2]).codes)
    assert output.losses["commitment"] > 0


def test_first_codes_come_from_each_groups_latents():
    start = {"type": "kmeans", "samples": 60}
    for shared in (False, True):
        quantizer = product(base={**VQ, "initializer": start}, shared=shared)
        pool = torch.randn(80, 12) + torch.arange(3).repeat_interleave(4) * 100
        assert quantizer.samples_wanted == 60
        quantizer.initialize(pool)
        assert quantizer.samples_wanted == 0
        errors = (quantizer.eval()(pool[None]).codes - pool).square().mean()
        assert errors < 3


def test_compiles_in_one_graph():
    torch.compiler.reset()
    quantizer, twin = product(), product()
    latents = latents_for(quantizer)
    expected = quantizer(latents)
    found = torch.compile(twin, fullgraph=True, backend="aot_eager")(latents)
    assert torch.equal(expected.indices, found.indices)
    torch.testing.assert_close(expected.codes, found.codes)


def test_bad_fields():
    for fields, message in (
        ({"groups": 0}, "groups must be 1 or more"),
        ({"bases": [VQ]}, r"bases must be empty or 3 \(groups\)"),
        ({"bases": [VQ, VQ, VQ], "shared": True}, "shared must be false"),
        ({"groups": 2, "bases": [VQ, {"type": "fsq"}]}, "same codebook_size.*16 codes.*1000 codes"),
        ({"groups": 2, "bases": [VQ, BASES["multi_scale"]]}, "same codebook_size and grid"),
    ):
        with pytest.raises(ValueError, match=message):
            product(**fields)
