"""TiTok's two stages: codes of a proxy tokenizer first, pixels through its decoder then."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.losses.base import LossConfig
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.training.fine_tuning import copy_proxy

PATCH = {"type": "patch", "patch_size": 4, "width": 8}
VQ = {"type": "vq", "codebook_size": 12, "code_dim": 4}
QUERIES = {"type": "latent_query", "num_latents": 4, "width": 16, "depth": 1, "heads": 2, "patches": PATCH}


def build(**sections):
    torch.manual_seed(0)
    return VisualTokenizer(VisualTokenizerConfig(image_size=16, quantizer=VQ, **sections)).eval()


def build_proxy():
    return build(encoder=PATCH, decoder=PATCH)


def build_tokenizer(trained=False, codebook_size=12):
    codes = {"type": "proxy_codes", "width": 16, "codebook_size": codebook_size, "proxy": PATCH, "trained": trained}
    return build(encoder=QUERIES, decoder={**QUERIES, "grid_size": 4, "patches": codes})


def build_loss(proxy, folder, **fields):
    proxy.save_pretrained(folder)
    return LossConfig.family.build({"type": "proxy_codes", "proxy": str(folder), **fields})


def pictures(batch=2):
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_certain_logits_give_the_proxys_own_reconstruction():
    """This covers the proxy's codes, its map from codes and its decoder, in the order of the indices."""
    proxy, tokenizer = build_proxy(), build_tokenizer()
    copy_proxy(tokenizer, proxy)
    indices = proxy.encode(pictures())
    assert len(indices.unique()) > 1
    certain = 100 * F.one_hot(indices, 12).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(tokenizer.decoder.pixels(certain), proxy(pictures()).pixels, atol=1e-5, rtol=1e-4)


def test_uncertain_logits_give_the_mean_code():
    proxy, tokenizer = build_proxy(), build_tokenizer()
    copy_proxy(tokenizer, proxy)
    codes = proxy.from_codes(proxy.quantizer.indices_to_codes(torch.arange(12)[:, None]))[:, 0]
    logits = torch.randn(1, 12, 4, 4)
    mixed = torch.einsum("bkhw,kc->bhwc", logits.softmax(1), codes).flatten(1, 2)
    torch.testing.assert_close(tokenizer.decoder.pixels(logits), proxy.decoder(mixed, (4, 4)), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_with_the_proxys_indices(tmp_path, smoothing):
    proxy, tokenizer = build_proxy(), build_tokenizer()
    loss = build_loss(proxy, tmp_path, label_smoothing=smoothing)
    output = tokenizer(pictures())
    found = loss(output, {"pixels": pictures()})
    log_probabilities = output.raw.log_softmax(dim=1)
    right = log_probabilities.gather(1, proxy.encode(pictures())[:, None])
    expected = -(1 - smoothing) * right.mean() - smoothing * log_probabilities.mean()
    torch.testing.assert_close(found, expected)
    assert not list(loss.parameters())
    assert not loss.state_dict()


def test_stage_1_teaches_the_codes_and_leaves_the_proxy_alone(tmp_path):
    proxy, tokenizer = build_proxy(), build_tokenizer().train()
    copy_proxy(tokenizer, proxy)
    before = {name: value.clone() for name, value in proxy.decoder.state_dict().items()}
    loss = build_loss(proxy, tmp_path)
    optimizer = torch.optim.Adam([value for value in tokenizer.parameters() if value.requires_grad], 1e-2)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        output = tokenizer(pictures())
        value = loss(output, {"pixels": pictures()})
        (value + sum(output.losses.values())).backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.5 * values[0]
    part = tokenizer.decoder.patches
    assert all(torch.equal(part.proxy.state_dict()[name], value) for name, value in before.items())


def test_stage_2_goes_on_from_stage_1_and_trains_the_proxys_decoder():
    first, second = build_tokenizer(), build_tokenizer(trained=True).train()
    copy_proxy(first, build_proxy())
    second.load_state_dict(first.state_dict())
    second(pictures()).pixels.square().mean().backward()
    part = second.decoder.patches
    learned = [part.codes, *part.proxy.parameters(), *part.head.parameters()]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in learned)


def test_what_does_not_fit_is_refused(tmp_path):
    proxy = build_proxy()
    with pytest.raises(ConfigError, match="made for 16 codes"):
        copy_proxy(build_tokenizer(codebook_size=16), proxy)
    with pytest.raises(ConfigError, match="holds no 'proxy_codes'"):
        copy_proxy(proxy, proxy)
    loss = build_loss(proxy, tmp_path)
    with pytest.raises(ValueError, match=r"logits \(2, 12, 4, 4\).*got \(2, 16, 4, 4\)"):
        loss(build_tokenizer(codebook_size=16)(pictures()), {"pixels": pictures()})
    with pytest.raises(FileNotFoundError, match="visual tokenizer"):
        LossConfig.family.build({"type": "proxy_codes", "proxy": str(tmp_path / "absent")})
    with pytest.raises(ValueError, match="label_smoothing"):
        LossConfig.family.config({"type": "proxy_codes", "proxy": str(tmp_path), "label_smoothing": 1.0})
