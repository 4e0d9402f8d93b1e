"""DALL·E's dVAE, beside a slow reading of the paper's appendix with weights in a dict as they were published."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.layers.logit_laplace import from_support, to_support

CHANNELS, BLOCKS, CODE, SIZE = 8, 2, 6, 20
GAIN = 1 / (4 * BLOCKS) ** 2


def published_weights(seed):
    """Draw weights under the published names, for `CHANNELS` channels and `SIZE` codes of `CODE` channels."""
    generator = torch.Generator().manual_seed(seed)
    weights = {"encoder": {}, "decoder": {}}

    def add(part, name, leaving, entering, side):
        weights[part][f"blocks.{name}.w"] = torch.randn(leaving, entering, side, side, generator=generator) / side
        weights[part][f"blocks.{name}.b"] = torch.randn(leaving, generator=generator)

    for part, widths, sides in (
        ("encoder", [CHANNELS, CHANNELS, 2 * CHANNELS, 4 * CHANNELS, 8 * CHANNELS], [3, 3, 3, 1]),
        ("decoder", [CODE, 8 * CHANNELS, 4 * CHANNELS, 2 * CHANNELS, CHANNELS], [1, 3, 3, 3]),
    ):
        for level in range(4):
            for block in range(BLOCKS):
                entering, leaving = widths[level + (block > 0)], widths[level + 1]
                name = f"group_{level + 1}.block_{block + 1}"
                if entering != leaving:
                    add(part, f"{name}.id_path", leaving, entering, 1)
                inner = [entering, leaving // 4, leaving // 4, leaving // 4, leaving]
                for number in range(4):
                    add(part, f"{name}.res_path.conv_{number + 1}", inner[number + 1], inner[number], sides[number])
    add("encoder", "input", CHANNELS, 3, 7)
    add("encoder", "output.conv", SIZE, 8 * CHANNELS, 1)
    add("decoder", "input", CODE, SIZE, 1)
    add("decoder", "output.conv", 6, CHANNELS, 1)
    return weights


def slow_network(weights, part, hidden):
    """Compute the published encoder (mapped pixels → logits) or decoder (one-hots → statistics)."""

    def conv(name, value):
        weight = weights[part][f"blocks.{name}.w"]
        return F.conv2d(value, weight, weights[part][f"blocks.{name}.b"], padding=weight.shape[-1] // 2)

    hidden = conv("input", hidden)
    for level in range(1, 5):
        for block in range(1, BLOCKS + 1):
            name = f"group_{level}.block_{block}"
            residual = hidden
            for number in range(1, 5):
                residual = conv(f"{name}.res_path.conv_{number}", residual.relu())
            straight = conv(f"{name}.id_path", hidden) if f"blocks.{name}.id_path.w" in weights[part] else hidden
            hidden = straight + GAIN * residual
        if level < 4 and part == "encoder":
            hidden = hidden.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
        if level < 4 and part == "decoder":
            hidden = hidden.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return conv("output.conv", hidden.relu())


@pytest.fixture(scope="module")
def converted():
    """Return published weights and a tokenizer that holds them."""
    weights = published_weights(0)
    width = 8 * CHANNELS
    config = VisualTokenizerConfig(
        image_size=16,
        encoder={"type": "dvae", "channels": CHANNELS, "blocks_per_group": BLOCKS},
        quantizer={"type": "gumbel", "codebook_size": SIZE, "code_dim": width},
        decoder={"type": "dvae", "channels": CHANNELS, "blocks_per_group": BLOCKS, "code_channels": CODE},
    )
    tokenizer = VisualTokenizer(config).eval()
    for part in ("encoder", "decoder"):
        ours = {
            name.removesuffix(".w").removesuffix(".b") + (".weight" if name.endswith(".w") else ".bias"): value
            for name, value in weights[part].items()
            if not name.startswith("blocks.input") or part == "encoder"
        }
        if part == "encoder":
            for name in ("weight", "bias"):
                value = ours.pop(f"blocks.output.conv.{name}")
                getattr(tokenizer.quantizer.to_logits, name).data = value.flatten(1) if name == "weight" else value
        getattr(tokenizer, part).load_state_dict(ours)
    tokenizer.to_codes.weight.data = torch.eye(width)
    tokenizer.to_codes.bias.data.zero_()
    tokenizer.quantizer.codebook.data = F.pad(weights["decoder"]["blocks.input.w"].flatten(1).T, (0, width - CODE))
    tokenizer.from_codes.weight.data = torch.eye(width)[:CODE].clone()
    tokenizer.from_codes.bias.data = weights["decoder"]["blocks.input.b"]
    return weights, tokenizer


def test_published_weights_give_the_published_function(converted):
    weights, tokenizer = converted
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1)) * 2 - 1
    logits = slow_network(weights, "encoder", (pixels + 1) / 2 * 0.8 + 0.1)
    indices = logits.argmax(dim=1)
    one_hots = F.one_hot(indices, SIZE).permute(0, 3, 1, 2).float()
    statistics = slow_network(weights, "decoder", one_hots)
    with torch.no_grad():
        output = tokenizer(pixels)
    assert torch.equal(output.indices, indices)
    assert len(indices.unique()) > 1
    torch.testing.assert_close(output.raw, statistics, atol=1e-3, rtol=1e-4)
    values = (statistics[:, :3].sigmoid() - 0.1) / 0.8
    torch.testing.assert_close(output.pixels, values * 2 - 1, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(tokenizer.decode(indices), values.clamp(0, 1) * 2 - 1, atol=1e-4, rtol=1e-4)


def test_mixed_codes_give_what_mixed_one_hots_give(converted):
    weights, tokenizer = converted
    mixture = torch.rand(1, 4, SIZE).softmax(dim=2)
    expected = slow_network(weights, "decoder", mixture.transpose(1, 2).unflatten(2, (2, 2)))
    codes = mixture @ tokenizer.quantizer.codebook
    torch.testing.assert_close(tokenizer.decoder(tokenizer.from_codes(codes), (2, 2)), expected, atol=1e-3, rtol=1e-4)


def test_weights_are_drawn_with_variance_one_over_inputs():
    encoder = EncoderConfig.family.build({"type": "dvae", "channels": 64, "blocks_per_group": 1}, image_size=16)
    weight = encoder.blocks.group_4.block_1.res_path.conv_2.weight
    assert float(weight.detach().std() * weight[0].numel() ** 0.5) == pytest.approx(1, abs=0.02)
    assert not encoder.blocks.input.bias.any()


def test_the_map_of_pixels_and_its_inverse():
    pixels = torch.linspace(-1, 1, 9)
    torch.testing.assert_close(to_support(pixels), torch.linspace(0.1, 0.9, 9))
    torch.testing.assert_close(from_support(to_support(pixels)), pixels)


def test_wrong_fields_are_named():
    for family, field, value in (
        (EncoderConfig, "channels", 6),
        (EncoderConfig, "blocks_per_group", 0),
        (DecoderConfig, "code_channels", 0),
    ):
        with pytest.raises(ValueError, match=field):
            family.family.build({"type": "dvae", field: value}, image_size=16)
