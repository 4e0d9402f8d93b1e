from itertools import combinations

import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer import build_quantizer

VQ = {"type": "vq", "codebook_size": 16, "code_dim": 4, "update": {"type": "gradient"}}
BASES = {
    "vq": VQ,
    "fsq": {"type": "fsq", "levels": [5, 4]},
    "lfq": {"type": "lfq", "codebook_size": 8},
    "bsq": {"type": "bsq", "codebook_size": 8},
    "gumbel": {"type": "gumbel", "codebook_size": 8, "code_dim": 4},
    "residual": {"type": "residual", "base": VQ, "depth": 2},
    "multi_scale": {"type": "multi_scale", "base": VQ, "scales": [1, 2]},
}


def multi_head(**fields):
    torch.manual_seed(0)
    return build_quantizer("multi_head", **{"base": VQ, "heads": 3, "code_dim": 6, **fields})


def latents_for(quantizer):
    length = 7 if quantizer.latent_grid is None else 4
    return torch.randn(2, length, quantizer.code_dim, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BASES)
def test_heads_are_maps_and_quantizers_projected_back(name):
    """The formula: W [Q_1(W_1 x), …], losses summed."""
    quantizer = multi_head(base=BASES[name]).eval()
    latents = latents_for(quantizer).requires_grad_()
    output = quantizer(latents)
    heads = [part(latents @ view.weight.T) for part, view in zip(quantizer.parts, quantizer.views, strict=True)]
    joined = torch.cat([head.codes for head in heads], dim=2)
    torch.testing.assert_close(output.codes, joined @ quantizer.projection.weight.T)
    assert torch.equal(quantizer.indices_to_codes(output.indices), output.codes)
    for loss, value in output.losses.items():
        torch.testing.assert_close(value, torch.stack([head.losses[loss] for head in heads]).sum())
    quantizer.train()(latents).codes.sum().backward()
    assert all(view.weight.grad.abs().sum() > 0 for view in quantizer.views)


def test_heads_that_are_added_up():
    quantizer = multi_head(combine="sum", code_dim=4)
    latents = latents_for(quantizer)
    expected = sum(quantizer.parts[head](quantizer.views[head](latents)).codes for head in range(3))
    torch.testing.assert_close(quantizer(latents).codes, expected)
    assert quantizer.projection is None


@pytest.mark.parametrize("heads", [2, 3])
def test_disentanglement_is_the_mean_squared_cosine_of_pairs(heads):
    """FQGAN's term, pair by pair; its gradient reaches the maps and not the codebooks."""
    quantizer = multi_head(heads=heads, disentanglement_weight=0.1)
    latents = latents_for(quantizer)
    term = quantizer(latents).losses["disentanglement"]
    codes = [quantizer.parts[head](quantizer.views[head](latents)).codes for head in range(heads)]
    pairs = [F.cosine_similarity(one, other, dim=-1).square().mean() for one, other in combinations(codes, 2)]
    torch.testing.assert_close(term, 0.1 * sum(pairs) / len(pairs))
    term.backward()
    assert all(view.weight.grad.abs().sum() > 0 for view in quantizer.views)
    assert all(part.codebook.grad is None for part in quantizer.parts)


def test_disentanglement_drives_heads_apart():
    quantizer = multi_head(heads=2, disentanglement_weight=1.0, base={**VQ, "codebook_size": 256})
    latents = torch.randn(4, 64, 6)
    optimizer = torch.optim.Adam(quantizer.views.parameters(), lr=0.02)
    terms = []
    for _ in range(60):
        term = quantizer(latents).losses["disentanglement"]
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
        terms.append(term.item())
    assert terms[-1] < 0.6 * terms[0]


def test_first_codes_come_from_each_heads_view():
    quantizer = multi_head(base={**VQ, "initializer": {"type": "kmeans", "samples": 64}})
    pool = torch.randn(64, 6)
    assert quantizer.samples_wanted == 64
    quantizer.initialize(pool)
    assert quantizer.samples_wanted == 0
    for part, view in zip(quantizer.parts, quantizer.views, strict=True):
        nearest = torch.cdist(view(pool), part.codebook).min(dim=1).values.square()
        assert nearest.mean() < 0.5 * view(pool).square().sum(1).mean()


def test_compiles_in_one_graph():
    torch.compiler.reset()
    quantizer, twin = (multi_head(disentanglement_weight=0.1) for _ in range(2))
    latents = latents_for(quantizer)
    expected = quantizer(latents)
    found = torch.compile(twin, fullgraph=True, backend="aot_eager")(latents)
    assert torch.equal(expected.indices, found.indices)
    torch.testing.assert_close(expected.losses["disentanglement"], found.losses["disentanglement"])


def test_bad_fields():
    for fields, message in (
        ({"heads": 0}, "heads must be 1 or more"),
        ({"combine": "sum"}, r"code_dim must be code_dim \(6\)"),
        ({"disentanglement_weight": -1.0}, "disentanglement_weight must be 0 or more"),
        ({"disentanglement_weight": 1.0, "heads": 1}, "where there is one head"),
        ({"bases": [VQ]}, r"bases must be empty or 3 \(heads\)"),
        (
            {"heads": 2, "disentanglement_weight": 1.0, "bases": [VQ, {"type": "fsq", "levels": [4, 4]}]},
            "where heads differ in code_dim",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            multi_head(**fields)
