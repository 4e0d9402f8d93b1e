import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig, build_quantizer
from visual_tokenizer.encoders.base import ResolutionError
from visual_tokenizer.quantizers import base as quantizer_base

VQ = {"type": "vq", "codebook_size": 16, "code_dim": 4, "update": {"type": "gradient"}}
BASES = {
    "ema": {**VQ, "update": {"type": "ema"}},
    "normalized": {**VQ, "normalize": True},
    "fsq": {"type": "fsq", "levels": [5, 4]},
    "lfq": {"type": "lfq", "codebook_size": 8},
    "bsq": {"type": "bsq", "codebook_size": 8},
    "dual": {"type": "dual", "codebook_size": 8, "semantic_dim": 2, "pixel_dim": 2},
    "product": {"type": "product", "base": VQ},
    "residual": {"type": "residual", "base": VQ, "depth": 2},
}


def multi_scale(**fields):
    torch.manual_seed(0)
    return build_quantizer("multi_scale", **{"base": VQ, "scales": [1, 2, 3, 5], **fields})


def latents_for(quantizer, batch=2):
    return torch.randn(batch, quantizer.lengths[-1], quantizer.code_dim, generator=torch.Generator().manual_seed(1))


def var(latents, table, convolutions, sides, ratio=0.5, beta=0.25):
    """VAR's encoding (algorithm 1) and loss, with the published choice of φ: f̂, indices of each scale, loss."""
    ticks = np.linspace(1 / 12, 11 / 12, 4)
    batch, side = latents.shape[0], sides[-1]
    features = latents.transpose(1, 2).reshape(batch, -1, side, side)
    rest, total, loss, indices = features.detach().clone(), 0, 0, []
    for number, scale in enumerate(sides):
        small = F.interpolate(rest, size=(scale, scale), mode="area")
        vectors = small.permute(0, 2, 3, 1).reshape(-1, table.shape[1])
        nearest = torch.cdist(vectors, table).argmin(dim=1).view(batch, scale, scale)
        grown = F.embedding(nearest, table).permute(0, 3, 1, 2)
        if scale != side:
            grown = F.interpolate(grown, size=(side, side), mode="bicubic")
        convolution = convolutions[np.argmin(np.abs(ticks - number / (len(sides) - 1)))]
        grown = (1 - ratio) * grown + ratio * convolution(grown)
        total = total + grown
        rest = rest - grown.detach()
        loss = loss + beta * F.mse_loss(total.detach(), features) + F.mse_loss(total, features.detach())
        indices.append(nearest.flatten(1))
    output = total.detach() + features - features.detach()
    return output.flatten(2).transpose(1, 2), torch.cat(indices, dim=1), loss / len(sides)


def test_same_as_the_published_loop():
    """Indices, codes, loss, and the gradients of latents, table and convolutions."""
    sides = [1, 2, 3, 4, 5]
    quantizer = multi_scale(scales=sides)
    latents = latents_for(quantizer)
    mine, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    table = nn.Parameter(quantizer.parts[0].codebook.detach().clone())
    convolutions = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1) for _ in range(4)])
    convolutions.load_state_dict(quantizer.phi.state_dict())
    output = quantizer(mine)
    codes, indices, loss = var(theirs, table, convolutions, sides)
    assert torch.equal(output.indices, indices)
    torch.testing.assert_close(output.codes, codes)
    torch.testing.assert_close(sum(output.losses.values()), loss)
    weights = torch.randn_like(codes)
    (sum(output.losses.values()) + (output.codes * weights).sum()).backward()
    (loss + (codes * weights).sum()).backward()
    torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(quantizer.parts[0].codebook.grad, table.grad)
    for one, other in zip(quantizer.phi, convolutions, strict=True):
        torch.testing.assert_close(one.weight.grad, other.weight.grad)


@pytest.mark.parametrize("count", [1, 3, 4, 10])
def test_scales_share_convolutions_as_published(count):
    """VAR's ten scales; as many convolutions as scales are one each."""
    places = (
        np.linspace(1 / 3 / 4, 1 - 1 / 3 / 4, 4) if count == 4 else np.linspace(1 / 2 / count, 1 - 1 / 2 / count, count)
    )
    expected = [int(np.argmin(np.abs(places - scale / 9))) for scale in range(10)]
    found = multi_scale(scales=[1, 2, 3, 4, 5, 6, 8, 10, 13, 16], phi_count=count).phi_of
    assert found == expected
    if count == 10:
        assert found == list(range(10))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_any_base_composes(name, shared):
    quantizer = multi_scale(base=BASES[name], scales=[1, [2, 1], [4, 3]], shared=shared)
    latents = latents_for(quantizer).requires_grad_()
    output = quantizer(latents)
    assert output.indices.shape[:2] == (2, 15)
    (sum(output.losses.values()) + output.codes.sum()).backward()
    assert latents.grad.abs().sum() > 0
    assert [name for name, weight in quantizer.named_parameters() if weight.requires_grad and weight.grad is None] == []
    quantizer.eval()
    output = quantizer(latents)
    assert torch.equal(quantizer.indices_to_codes(output.indices), output.codes)


def test_entropies_of_a_base_are_kept_and_averaged_but_not_its_commitment():
    quantizer = multi_scale(base={"type": "lfq", "codebook_size": 8, "commitment_weight": 100.0}, scales=[1, 2])
    latents = latents_for(quantizer).requires_grad_()
    losses = quantizer(latents).losses
    assert set(losses) == {"entropy", "codebook", "commitment"}
    assert losses["commitment"] < 10
    losses["entropy"].backward()
    assert latents.grad.abs().sum() > 0
    without = multi_scale(base=BASES["ema"], commitment_weight=0.0)
    assert set(without(latents_for(without)).losses) == {"codebook"}


def test_each_scale_lowers_the_error_of_averages():
    """Without φ, scale after scale explains what is left: with exact codes the last leaves nothing."""
    base = {"type": "fsq", "levels": [255, 255], "grid": "symmetric"}
    quantizer = multi_scale(base=base, scales=[1, 2, 4], phi_ratio=0.0).eval()
    assert len(quantizer.phi) == 0
    latents = latents_for(quantizer) * 0.1
    output = quantizer(latents)
    torch.testing.assert_close(output.codes, latents, atol=0.05, rtol=0)
    torch.testing.assert_close(output.metrics["quantization_error"], (output.codes - latents).square().sum(-1).mean())


def test_scale_dropout_keeps_the_first_scales(monkeypatch):
    quantizer = multi_scale(scale_dropout=0.5)
    latents = latents_for(quantizer)
    whole = quantizer.eval()(latents)
    quantizer.train()
    for draws, kept in (((0.4, 0.3), 2), ((0.9, 0.3), 4)):
        monkeypatch.setattr(quantizer_base, "broadcast_from_first_rank", lambda _, draws=draws: torch.tensor(draws))
        output = quantizer(latents)
        parts = whole.indices.split(quantizer.lengths, dim=1)
        grown = [quantizer._grown(quantizer.parts[0].lookup(part), s) for s, part in enumerate(parts[:kept])]
        torch.testing.assert_close(output.codes, sum(grown).flatten(2).transpose(1, 2))
        assert torch.equal(output.indices, whole.indices)
        torch.testing.assert_close(output.losses, whole.losses)


@pytest.mark.parametrize("shared", [False, True])
def test_first_codes_come_from_each_scale(shared):
    base = {**VQ, "codebook_size": 32, "initializer": {"type": "kmeans", "samples": 900}}
    quantizer = multi_scale(base=base, shared=shared)
    # 39 tokens a picture of 25 latents; without sharing, the last scale's 25.
    assert quantizer.samples_wanted == (24 if shared else 36) * 25
    pool = torch.randn(36 * 25 + 3, 4) * 3
    quantizer.initialize(pool)
    assert quantizer.samples_wanted == 0
    latents = pool[: 36 * 25].view(36, 25, 4)
    random = multi_scale(base={**VQ, "codebook_size": 32}, shared=shared)
    errors = [q.eval()(latents).metrics["quantization_error"] for q in (quantizer, random)]
    assert errors[0] < 0.8 * errors[1]
    trained = multi_scale(base=base, shared=shared)
    trained(pool[: 36 * 25].view(36, 25, 4))
    torch.testing.assert_close(trained.parts[0].codebook, quantizer.parts[0].codebook)


def test_compiles_in_one_graph():
    torch.compiler.reset()
    quantizer, twin = multi_scale(scales=[1, 3]), multi_scale(scales=[1, 3])
    latents = latents_for(quantizer)
    expected = quantizer(latents)
    found = torch.compile(twin, fullgraph=True, backend="aot_eager")(latents)
    assert torch.equal(expected.indices, found.indices)
    torch.testing.assert_close(expected.codes, found.codes)


PATCH = {"type": "patch", "patch_size": 4, "width": 8}
QUERY = {"type": "latent_query", "num_latents": 16, "width": 8, "depth": 1, "heads": 2, "patches": PATCH}


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("one_dimensional", [False, True])
def test_a_tokenizer_of_scales(one_dimensional, product, tmp_path):
    """Encode, decode, save and load, on a grid of latents and on a row of as many (ImageFolder's)."""
    section = {"type": "multi_scale", "base": VQ, "scales": [1, 2, 4]}
    if product:
        section = {"type": "product", "base": section, "groups": 2}
    parts = {"encoder": PATCH, "decoder": PATCH}
    if one_dimensional:
        parts = {"encoder": QUERY, "decoder": {**QUERY, "grid_size": 4}}
    tokenizer = VisualTokenizer(VisualTokenizerConfig(image_size=16, quantizer=section, **parts)).eval()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    indices = tokenizer.encode(pixels)
    assert tokenizer.token_grid() == (21,)
    assert indices.shape == ((2, 21, 2) if product else (2, 21))
    output = tokenizer(pixels)
    assert torch.equal(output.indices, indices)
    decoded = tokenizer.decode(indices)
    torch.testing.assert_close(decoded, output.pixels.clamp(-1, 1))
    tokenizer.save_pretrained(tmp_path)
    loaded = VisualTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(pixels), indices)
    assert torch.equal(loaded.decode(indices), decoded)
    with pytest.raises(ResolutionError, match=r"indices must be \(B, 21\)"):
        tokenizer.decode(indices[:, 1:])
    if not one_dimensional:
        with pytest.raises(ResolutionError, match=r"takes a grid of \(4, 4\) latents only, got \(2, 8\)"):
            tokenizer.encode(torch.zeros(1, 3, 8, 32))


def test_bad_fields():
    for fields, message in (
        ({"scales": []}, r"scales must hold 1 or more items, got \[\]"),
        ({"scales": [0, 4]}, r"scales\[0\] must be 1 or more, got 0"),
        ({"scales": [[1, 2, 3], 4]}, r"scales\[0\] must hold 2 items, got \[1, 2, 3\]"),
        ({"scales": [4, 2]}, "scales must not be larger than the last"),
        ({"phi_ratio": 1.5}, "phi_ratio must be in"),
        ({"phi_count": 0}, "phi_count must be 1 or more"),
        ({"scale_dropout": -0.1}, "scale_dropout must be in"),
        ({"commitment_weight": -0.1}, "commitment_weight must be 0 or more"),
        ({"base": {"type": "multi_scale"}}, "base must take each position by itself"),
    ):
        with pytest.raises(ValueError, match=message):
            multi_scale(**fields)
    with pytest.raises(ResolutionError, match="takes a grid of"):
        VisualTokenizer(
            VisualTokenizerConfig(image_size=32, quantizer={"type": "multi_scale"}, encoder=PATCH, decoder=PATCH)
        )
