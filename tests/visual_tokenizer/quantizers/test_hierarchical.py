import pytest
import torch

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig, build_quantizer

VQ = {"type": "vq", "codebook_size": 16, "code_dim": 4, "update": {"type": "gradient"}}
BASES = {
    "vq": (VQ, {**VQ, "code_dim": 3}),
    "fsq": ({"type": "fsq", "levels": [5, 4]}, {"type": "fsq", "levels": [4, 5]}),
    "lfq and vq": ({"type": "lfq", "codebook_size": 16}, VQ),
    "residual": ({"type": "residual", "base": VQ, "depth": 2}, {"type": "product", "base": VQ, "groups": 2}),
}


def hierarchical(top=VQ, bottom=VQ, **fields):
    torch.manual_seed(0)
    return build_quantizer("hierarchical", top=top, bottom=bottom, **{"grid": [4, 6], "code_dim": 8, **fields})


def latents_for(quantizer):
    return torch.randn(2, 24, quantizer.code_dim, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", BASES)
def test_levels_are_those_of_vq_vae_2(name):
    """The data flow, written out: top, decoded beside the latents, bottom, both combined; losses summed."""
    quantizer = hierarchical(*BASES[name]).eval()
    latents = latents_for(quantizer)

    def as_map(tokens, height, width):
        return tokens.transpose(1, 2).reshape(2, -1, height, width)

    def as_tokens(feature_map):
        return feature_map.flatten(2).transpose(1, 2)

    top = quantizer.top(as_tokens(quantizer.to_top(as_map(latents, 4, 6))))
    top_map = as_map(top.codes, 2, 3)
    seen = torch.cat([as_map(latents, 4, 6), quantizer.from_top(top_map)], dim=1)
    bottom = quantizer.bottom(as_tokens(quantizer.to_bottom(seen)))
    both = torch.cat([quantizer.upsample_top(top_map), as_map(bottom.codes, 4, 6)], dim=1)
    output = quantizer(latents)
    assert torch.equal(output.indices, torch.cat([top.indices, bottom.indices], dim=1))
    torch.testing.assert_close(output.codes, as_tokens(quantizer.combine(both)))
    for loss, value in output.losses.items():
        expected = sum(level.losses[loss] for level in (top, bottom) if loss in level.losses)
        torch.testing.assert_close(value, expected)
    assert torch.equal(quantizer.indices_to_codes(output.indices), output.codes)


@pytest.mark.parametrize("name", BASES)
def test_gradients_reach_every_weight(name):
    quantizer = hierarchical(*BASES[name])
    latents = latents_for(quantizer).requires_grad_()
    output = quantizer(latents)
    (output.codes.square().mean() + sum(output.losses.values(), torch.zeros(()))).backward()
    assert latents.grad.abs().sum() > 0
    assert [name for name, weight in quantizer.named_parameters() if weight.grad is None] == []


def test_a_top_code_changes_a_patch_and_a_bottom_code_one_position():
    quantizer = hierarchical().eval()
    indices = torch.zeros(1, 30, dtype=torch.int64)
    codes = quantizer.indices_to_codes(indices)

    def changed(position):
        other = indices.clone()
        other[0, position] = 5
        return (quantizer.indices_to_codes(other) - codes).abs().amax(dim=2)[0].view(4, 6) > 0

    assert changed(6 + 8).nonzero().tolist() == [[1, 2]]
    assert changed(0)[:3, :3].all()
    assert changed(0).sum() == 9


def test_both_levels_learn_to_give_the_latents_back():
    quantizer = hierarchical()
    latents = torch.randn(8, 24, 8, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=5e-3)
    errors = []
    for _ in range(80):
        output = quantizer(latents)
        error = (output.codes - latents).square().mean()
        optimizer.zero_grad()
        (error + sum(output.losses.values())).backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.75 * errors[0]


def test_first_codes_come_from_what_each_level_sees():
    start = {**VQ, "initializer": {"type": "kmeans", "samples": 100}}
    quantizer = hierarchical(start, start)
    assert quantizer.samples_wanted == 17 * 24  # pictures of 6 top tokens that make 100
    pool = torch.randn(17 * 24, 8)
    quantizer.initialize(pool)
    assert quantizer.samples_wanted == 0
    random = hierarchical()
    errors = [q.eval()(pool.view(17, 24, 8)).metrics["quantization_error"] for q in (quantizer, random)]
    assert errors[0] < errors[1]


def test_compiles_in_one_graph():
    torch.compiler.reset()
    quantizer, twin = hierarchical(), hierarchical()
    latents = latents_for(quantizer)
    expected = quantizer(latents)
    found = torch.compile(twin, fullgraph=True, backend="aot_eager")(latents)
    assert torch.equal(expected.indices, found.indices)
    torch.testing.assert_close(expected.codes, found.codes)


def test_a_tokenizer_of_two_levels(tmp_path):
    patch = {"type": "patch", "patch_size": 4, "width": 8}
    section = {"type": "hierarchical", "top": VQ, "bottom": VQ, "grid": [4, 4], "code_dim": 8}
    config = VisualTokenizerConfig(image_size=16, quantizer=section, encoder=patch, decoder=patch)
    tokenizer = VisualTokenizer(config).eval()
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    indices = tokenizer.encode(pixels)
    assert indices.shape == (2, *tokenizer.token_grid()) == (2, 20)
    tokenizer.save_pretrained(tmp_path)
    loaded = VisualTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(pixels), indices)
    torch.testing.assert_close(loaded.decode(indices), tokenizer(pixels).pixels.clamp(-1, 1))


def test_bad_fields():
    for fields, message in (
        ({"grid": [4, 5]}, r"grid\[1\] must be 2 or more and a multiple of 2, got 5"),
        ({"grid": [4]}, r"grid must hold 2 items, got \[4\]"),
        ({"code_dim": 0}, "code_dim must be 1 or more"),
        ({"top": {**VQ, "codebook_size": 8}}, "one codebook_size, got 8 and 16"),
        ({"top": {"type": "product", "base": VQ}}, "one num_codebooks, got 2 and 1"),
        ({"top": {"type": "hierarchical"}, "bottom": {"type": "hierarchical"}}, "take each position by itself"),
    ):
        with pytest.raises(ValueError, match=message):
            hierarchical(**fields)
