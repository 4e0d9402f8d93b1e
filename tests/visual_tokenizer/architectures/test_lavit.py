"""LaVIT: which places are kept, how kept tokens gather from dropped ones, and what reads them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig, ResolutionError
from visual_tokenizer.evaluation.reconstruction import measure_reconstruction
from visual_tokenizer.layers.token_merger import MergerBlock, TokenMerger, causal_weights, weighted_softmax
from visual_tokenizer.layers.token_selector import TokenSelector, draw_decisions, expected_decisions, pack
from visual_tokenizer.outputs import ABSENT, own_tokens, pad_tokens
from visual_tokenizer.registry import ConfigError

PATCH = {"type": "patch", "patch_size": 4, "width": 8}
SHAPE = {"width": 16, "depth": 2, "heads": 2, "patches": PATCH}
ENCODER = {"type": "lavit", **SHAPE}
DECODER = {"type": "lavit", "num_latents": 16, "grid_size": 4, **SHAPE}
VQ = {"type": "vq", "codebook_size": 16, "code_dim": 4}


def build(**sections) -> VisualTokenizer:
    torch.manual_seed(0)
    sections = {"encoder": ENCODER, "quantizer": VQ, "decoder": DECODER, **sections}
    tokenizer = VisualTokenizer(VisualTokenizerConfig(image_size=16, **sections))
    selector = tokenizer.encoder.selector
    with torch.no_grad():  # a selector that is sure of what it does, whatever that is
        for layer in (selector.mixing[0], *selector.head[::2]):
            layer.weight.mul_(4)
        logits = selector.logits(tokenizer.encoder.decide(pixels(32))[0])
        selector.head[-1].bias.sub_(logits.mean())
    return tokenizer.eval()


def pixels(count: int) -> torch.Tensor:
    squares = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return squares.repeat_interleave(4, 2).repeat_interleave(4, 3)


def test_a_place_is_drawn_with_its_probability():
    torch.manual_seed(0)
    logits = torch.tensor([-2.0, 0.0, 1.5, 4.0]).repeat(20000, 1)
    drawn = draw_decisions(logits, 1.0)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(0), logits[0].sigmoid(), atol=0.012, rtol=0)


def test_a_decision_is_that_of_a_gumbel_softmax_over_keep_and_drop():
    """The difference of two Gumbel variables is logistic: σ((ℓ + g₁ − g₂)/τ) is softmax(([ℓ, 0] + g)/τ) at keep."""
    torch.manual_seed(0)
    two = torch.nn.functional.gumbel_softmax(torch.tensor([1.5, 0.0]).expand(40000, 2), tau=0.7)[:, 0]
    uniform = torch.rand(40000)
    one = ((1.5 + uniform.logit()) / 0.7).sigmoid()
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        torch.testing.assert_close(one.quantile(share), two.quantile(share), atol=0.02, rtol=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_the_gradient_of_a_decision_is_that_of_the_relaxation(temperature, monkeypatch):
    uniform = torch.tensor([[0.9, 0.2, 0.6]])
    monkeypatch.setattr(torch, "rand_like", lambda _: uniform)
    logits = torch.tensor([[0.3, -0.4, 1.0]], requires_grad=True)
    weights = torch.tensor([[1.0, -2.0, 3.0]])
    (draw_decisions(logits, temperature) * weights).sum().backward()
    relaxed = ((logits.detach() + uniform.log() - (1 - uniform).log()) / temperature).sigmoid()
    torch.testing.assert_close(logits.grad, weights * relaxed * (1 - relaxed) / temperature)


def test_a_picture_keeps_one_place_or_more():
    drawn = draw_decisions(torch.full((64, 5), -30.0), 1.0)
    assert torch.equal(drawn.sum(1), torch.ones(64))
    logits = torch.tensor([[-9.0, -8.0, -9.0]])
    assert torch.equal(expected_decisions(logits), torch.tensor([[0.0, 1.0, 0.0]]))


def test_evaluation_keeps_the_expected_number_of_most_probable_places():
    probabilities = torch.tensor([[0.9, 0.1, 0.4, 0.8, 0.3], [0.01, 0.99, 0.02, 0.01, 0.97]])
    expected = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 1.0]])  # sums of 2.5 → 2 and 2
    expected[0, 2] = 0  # halves are rounded to the even number
    assert torch.equal(expected_decisions(probabilities.logit()), expected)


def test_where_the_selector_is_sure_both_are_a_threshold():
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0)).sign() * 25
    wanted = (logits > 0).float()
    assert torch.equal(expected_decisions(logits), wanted)
    assert torch.equal(draw_decisions(logits, 1.0), wanted)


def test_the_selector_sees_the_whole_picture():
    torch.manual_seed(0)
    selector = TokenSelector(16, 1.0)
    features = torch.randn(1, 5, 16, requires_grad=True)
    selector.logits(features)[0, 0].backward()
    assert bool((features.grad[0].abs().sum(1) > 0).all())


def test_kept_tokens_stand_in_front_in_their_order():
    tokens = torch.arange(10.0).view(2, 5, 1)
    packed, present = pack(tokens, torch.tensor([[0.0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]))
    assert packed[0, :3, 0].tolist() == [1, 3, 4]
    assert packed[1, 0, 0] == 5
    assert present.sum(1).tolist() == [3, 1]
    assert bool((present.long().diff(dim=1) <= 0).all())


def test_the_softmax_of_weights_is_that_of_the_keys_that_count():
    scores = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)) * 3
    keep = torch.tensor([True, False, True, True, False, False])
    wanted = torch.zeros(3, 6)
    wanted[:, keep] = scores[:, keep].softmax(1)
    torch.testing.assert_close(weighted_softmax(scores, keep.float()), wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(weighted_softmax(scores, torch.zeros(6)), torch.zeros(3, 6))


def test_the_gradient_of_a_dropped_key_says_what_keeping_it_would_change():
    """d/dw_j of Σ_k w_k e^{s_k} v_k / Σ_k w_k e^{s_k} is p_j (v_j − mean), also where w_j is 0."""
    scores, values = torch.tensor([1.0, 0.5, -0.3]), torch.tensor([2.0, -1.0, 4.0])
    weights = torch.tensor([1.0, 0.0, 1.0], requires_grad=True)
    (weighted_softmax(scores, weights) * values).sum().backward()
    sum_of_kept = scores[[0, 2]].exp().sum()
    mean = (scores.exp() * values)[[0, 2]].sum() / sum_of_kept
    torch.testing.assert_close(weights.grad, scores.exp() / sum_of_kept * (values - mean), atol=1e-4, rtol=1e-4)


def attend(part: nn.Module, query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Write out multi-head attention of one query (C,) to keys (N, C), each head by itself."""
    width = query.shape[0] // part.heads
    mixed = []
    for head in range(part.heads):
        own = slice(head * width, (head + 1) * width)
        scores = part.key(keys)[:, own] @ part.query(query)[own] / width**0.5
        mixed.append(scores.softmax(0) @ part.value(keys)[:, own])
    return part.projection(torch.cat(mixed))


def test_a_merger_block_written_out():
    """A kept token attends to kept ones up to itself, then to the features of all dropped ones."""
    torch.manual_seed(0)
    block = MergerBlock(8, 2)
    tokens, features = torch.randn(1, 6, 8), torch.randn(1, 6, 8)
    kept, dropped = [1, 2, 5], [0, 3, 4]
    decisions = torch.zeros(1, 6)
    decisions[0, kept] = 1
    given = block(tokens, features, decisions)[0]
    own = block.self_norm(tokens[0])
    for count, place in enumerate(kept, 1):
        token = tokens[0, place] + attend(block.self_attention, own[place], own[kept[:count]])
        token = token + attend(block.cross_attention, block.cross_norm(token), features[0, dropped])
        wanted = token + block.feed_forward(token)
        torch.testing.assert_close(given[place], wanted, atol=1e-4, rtol=1e-4)


def test_causal_weights():
    wanted = [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert torch.equal(causal_weights(torch.tensor([[0.0, 1, 1]]))[0], torch.tensor(wanted).float())


def test_what_becomes_of_kept_tokens_does_not_depend_on_what_becomes_of_dropped_ones():
    torch.manual_seed(0)
    merger = TokenMerger(8, 2, 2)
    features, decisions = torch.randn(1, 6, 8), torch.tensor([[0.0, 1, 1, 0, 0, 1]])
    expected = merger(features, decisions)
    for block in merger.blocks:  # dropped tokens become noise between the blocks
        block.register_forward_hook(lambda *a: a[2] + (1 - decisions[..., None]) * torch.randn(1, 6, 8))
    torch.testing.assert_close(merger(features, decisions)[:, [1, 2, 5]], expected[:, [1, 2, 5]])


def test_gradient_of_codes_reaches_the_selector():
    tokenizer = build().train()
    output = tokenizer(pixels(2))
    output.codes.square().sum().backward()
    for name, weight in tokenizer.encoder.selector.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_lengths_differ_and_a_picture_has_the_same_tokens_alone():
    tokenizer = build()
    given = pixels(8)
    indices = tokenizer.encode(given)
    assert indices.shape == (8, 16)
    lengths = [len(one) for one in own_tokens(indices)]
    assert len(set(lengths)) > 1
    assert torch.equal(indices, torch.cat([tokenizer.encode(one[None]) for one in given]))
    assert torch.equal(indices, tokenizer.encode(given))
    output = tokenizer(given)
    assert torch.equal(output.indices, indices)
    assert torch.equal(output.indices == ABSENT, ~output.present)
    assert torch.equal(output.decisions.sum(1), output.present.sum(1).float())
    assert output.metrics["tokens_per_picture"] == sum(lengths) / 8


def test_pictures_of_a_batch_decode_as_alone_whatever_stands_behind_them():
    tokenizer = build()
    indices = tokenizer.encode(pixels(6))
    together = tokenizer.decode(indices)
    for row, own in enumerate(own_tokens(indices)):
        torch.testing.assert_close(tokenizer.decode(own[None])[0], together[row], atol=1e-5, rtol=1e-4)
    output = tokenizer(pixels(6))
    assert torch.equal(output.pixels.clamp(-1, 1), together)
    codes = torch.where(output.present[..., None], output.codes, torch.full_like(output.codes, 1e4))
    again = tokenizer.decoder(tokenizer.from_codes(codes), (16,), output.present)
    torch.testing.assert_close(again, output.raw, atol=1e-5, rtol=1e-4)


def test_padding_is_undone():
    pictures = [torch.tensor([3, 4]), torch.tensor([5])]
    assert pad_tokens(pictures, 3).tolist() == [[3, 4, ABSENT], [5, ABSENT, ABSENT]]
    for one, other in zip(own_tokens(pad_tokens(pictures, 3)), pictures, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([[ABSENT, ABSENT]], "one or more tokens a picture"),
        ([[1, ABSENT, 2]], "only behind"),
        ([[0] * 17], "1 to 16"),
        ([[]], "1 to 16"),
        ([[[1]]], "1 to 16"),
    ],
)
def test_wrong_lengths_are_refused(indices, message):
    with pytest.raises(ResolutionError, match=message):
        build().decode(torch.tensor(indices, dtype=torch.int64))


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="decoder must take any number, and LatentQuery"):
        build(decoder={**DECODER, "type": "latent_query"})
    grids = {"type": "multi_scale", "base": {**VQ, "update": {"type": "gradient"}}, "scales": [1, 2, 4]}
    with pytest.raises(ConfigError, match="quantizer must take each by itself"):
        build(quantizer=grids)
    inner = {"type": "causal_q_former", "num_latents": 16, "width": 16, "depth": 1, "heads": 2, "patches": ENCODER}
    config = VisualTokenizerConfig(image_size=16, encoder=inner, quantizer=VQ, decoder=DECODER)
    with pytest.raises(ConfigError, match="CausalQFormer takes encoders of fixed length"):
        VisualTokenizer(config)


def test_only_present_tokens_are_measured():
    tokenizer = build()
    given = pixels(6)
    found = measure_reconstruction(tokenizer, [{"pixels": given[:4]}, {"pixels": given[4:]}], [], torch.device("cpu"))
    counted = sum(len(one) for one in own_tokens(tokenizer.encode(given)))
    assert found.values["codebook_tokens"] == counted
    assert found.tokens == counted // 6


def test_a_probe_passes_lengths_on():
    tokenizer = build(decoder={"type": "probe", "code_channels": 4, "decoder": DECODER})
    indices = tokenizer.encode(pixels(3))
    alone = tokenizer.decode(own_tokens(indices)[1][None])
    torch.testing.assert_close(alone[0], tokenizer.decode(indices)[1], atol=1e-5, rtol=1e-4)


def test_the_decoder_takes_fixed_lengths_too():
    decoder = DecoderConfig.family.build(DECODER, image_size=16).eval()
    latents = torch.randn(2, 9, 16)
    everything = torch.ones(2, 9, dtype=torch.bool)
    torch.testing.assert_close(decoder(latents, (9,)), decoder(latents, (9,), everything), atol=1e-5, rtol=1e-4)


def test_features_of_a_frozen_network_are_those_of_the_network():
    encoder = EncoderConfig.family.build({"type": "backbone", "level": 3, "size": 64}, image_size=32)
    assert encoder.token_grid(32, 32) == (4, 4)
    given = torch.rand(2, 3, 32, 32) * 2 - 1
    larger = torch.nn.functional.interpolate(given, (64, 64), mode="bilinear", align_corners=False)
    wanted = encoder.network.features(larger)[3].flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(given), wanted)
    assert not list(encoder.parameters())
    assert not encoder.state_dict()
    with pytest.raises(ValueError, match=r"layers must be different numbers in 0\.\.4"):
        EncoderConfig.family.build({"type": "backbone", "level": 5}, image_size=32)
