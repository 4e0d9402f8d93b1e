"""Chameleon's, Janus's and Emu3's tokenizers beside transformers' classes with the same random weights."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    ChameleonForConditionalGeneration,
    ChameleonVQVAE,
    ChameleonVQVAEConfig,
    Emu3VQVAE,
    Emu3VQVAEConfig,
)
from transformers.models.chameleon.configuration_chameleon import ChameleonConfig
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from visual_tokenizer import VisualTokenizer
from visual_tokenizer.convert import MissingDecoderWarning, load_published, save_published
from visual_tokenizer.errors import UserError

SMALL = {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1}
CHAMELEON = {**SMALL, "embed_dim": 8, "num_embeddings": 64, "latent_channels": 16, "resolution": 32}
JANUS = {**SMALL, "embed_dim": 8, "num_embeddings": 64, "latent_channels": 16, "num_patches": 16}
EMU3 = {
    "codebook_size": 64,
    "base_channels": 32,
    "channel_multiplier": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [2],
    "hidden_size": 64,
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def drawn(kind, config, **fields):
    """Build transformers' class, with norms that are not the identity, so that a mix-up of them shows."""
    model = kind(config(**fields)).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.GroupNorm, nn.BatchNorm3d)):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.1)
            if isinstance(module, nn.BatchNorm3d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2)
    return model


def pictures(*size):
    return torch.rand(2, 3, *size) * 2 - 1


def janus_pixels(model, indices):
    model.quantize.quant_state_dims = list(indices.shape[1:])  # the class decodes one size only
    return model.decode(indices.flatten(1))


def emu3_indices(model, pixels):
    # It cuts padding off by these sizes; of a clip it would cut time by the height, so no size is small here.
    sizes = torch.full((pixels.shape[0], 2), 10**6)
    return torch.stack(model.encode(pixels, image_sizes=sizes).image_tokens)


@pytest.mark.parametrize("size", [(32, 32), (32, 48), (16, 8)])
@pytest.mark.parametrize("attention", [{"attn_resolutions": [16]}, {"attn_resolutions": None}, {"attn_type": "none"}])
def test_chameleon_has_the_same_indices(size, attention):
    model = drawn(ChameleonVQVAE, ChameleonVQVAEConfig, **CHAMELEON, **attention)
    with pytest.warns(MissingDecoderWarning, match="ChameleonVQVAE holds no decoder"):
        tokenizer = load_published(model, source="chameleon")
    pixels = pictures(*size)
    found = tokenizer.encode(pixels)
    assert found.shape == (2, size[0] // 2, size[1] // 2)
    assert torch.equal(found.flatten(), model.encode(pixels).image_tokens)
    assert found.unique().numel() > 10
    assert tokenizer.config.image_size == 32


def test_chameleon_without_a_decoder_encodes_and_refuses_to_decode(tmp_path):
    model = drawn(ChameleonVQVAE, ChameleonVQVAEConfig, **CHAMELEON)
    with pytest.warns(MissingDecoderWarning):
        tokenizer = load_published(model, source="chameleon")
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, VisualTokenizer.from_pretrained(tmp_path)):
        with pytest.raises(UserError, match="no decoder"):
            each.decode(each.encode(pictures(32, 32)))


def test_chameleon_decodes_with_the_original_decoder():
    """The original checkpoint has VQGAN's layout; its decoder beside transformers' encoder gives the whole."""
    encoder = drawn(ChameleonVQVAE, ChameleonVQVAEConfig, **CHAMELEON)
    twin = drawn(JanusVQVAE, JanusVQVAEConfig, **JANUS)  # has VQGAN's decoder, with its levels counted upwards
    original = {
        name.replace("up.0", "up.x").replace("up.1", "up.0").replace("up.x", "up.1"): tensor
        for name, tensor in twin.state_dict().items()
        if name.startswith(("decoder.", "post_quant_conv."))
    }
    original["quantize.embedding.weight"] = encoder.quantize.embedding.weight
    tokenizer = load_published(encoder, source="chameleon", decoder={"state_dict": original})
    indices = tokenizer.encode(pictures(32, 48))
    codes = encoder.quantize.embedding(indices).permute(0, 3, 1, 2)
    expected = twin.decoder(twin.post_quant_conv(codes)).clamp(-1, 1)
    torch.testing.assert_close(tokenizer.decode(indices), expected, atol=1e-4, rtol=0)

    whole = {**encoder.state_dict(), **original, "loss.logvar": torch.zeros(())}
    alone = load_published(whole, source="chameleon", image_size=32)
    assert torch.equal(alone.decode(indices), tokenizer.decode(indices))

    original["quantize.embedding.weight"] = torch.randn_like(original["quantize.embedding.weight"])
    with pytest.raises(UserError, match="another codebook"):
        load_published(encoder, source="chameleon", decoder=original)


def test_a_whole_chameleon_gives_its_tokenizer(tmp_path):
    text = {"vocab_size": 99, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = ChameleonConfig(**text, **heads, vq_config=CHAMELEON, vocabulary_map={"<image>": 4, "IMGIMGA": 5})
    model = ChameleonForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "folder")
    save_file(model.model.vqmodel.state_dict(), tmp_path / "vq.safetensors")
    pixels = pictures(32, 32)
    expected = model.model.vqmodel.encode(pixels).image_tokens
    for source in (model, model.state_dict(), tmp_path / "folder", tmp_path / "vq.safetensors"):
        with pytest.warns(MissingDecoderWarning):
            tokenizer = load_published(source, source="chameleon")
        assert torch.equal(tokenizer.encode(pixels).flatten(), expected)


@pytest.mark.parametrize("size", [(32, 32), (16, 24)])
def test_janus_has_the_same_indices_and_pixels(size):
    model = drawn(JanusVQVAE, JanusVQVAEConfig, **JANUS)
    with torch.no_grad():  # the class searches among codes of any length and decodes normalised ones
        model.quantize.embedding.weight.mul_(torch.rand(64, 1) + 0.5)
    tokenizer = load_published(model, source="janus")
    pixels = pictures(*size)
    indices = tokenizer.encode(pixels)
    assert torch.equal(indices.flatten(), model.encode(pixels).image_tokens)
    assert indices.unique().numel() > 10
    with torch.no_grad():
        expected = janus_pixels(model, indices)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(tokenizer.decode(indices), expected.clamp(-1, 1), atol=1e-4, rtol=0)
    assert tokenizer.config.image_size == 32


@pytest.mark.parametrize("size", [(32, 32), (16, 24)])
def test_emu3_has_the_same_indices_and_pixels_of_pictures(size):
    model = drawn(Emu3VQVAE, Emu3VQVAEConfig, **EMU3)
    tokenizer = load_published(model, source="emu3", image_size=32)
    pixels = pictures(*size)
    with torch.no_grad():
        expected = emu3_indices(model, pixels)
        assert torch.equal(tokenizer.encode(pixels), expected)
        assert expected.unique().numel() > 10
        torch.testing.assert_close(tokenizer.decode(expected), model.decode(expected).clamp(-1, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_emu3_has_the_same_indices_and_pixels_of_clips(factor):
    model = drawn(Emu3VQVAE, Emu3VQVAEConfig, **EMU3, temporal_downsample_factor=factor)
    tokenizer = load_published(model, source="emu3", image_size=32)
    clips = torch.rand(2, 3, 8, 16, 24) * 2 - 1
    with torch.no_grad():
        expected = emu3_indices(model, clips.transpose(1, 2))
        found = tokenizer.encode(clips)
        assert found.shape == (2, 8 // factor, 4, 6)
        assert torch.equal(found, expected)
        decoded = tokenizer.decode(found)
        assert decoded.shape == clips.shape
        torch.testing.assert_close(decoded, model.decode(expected).transpose(1, 2).clamp(-1, 1), atol=1e-4, rtol=0)


def test_emu3_in_the_original_layout():
    """The original has VQGAN's names, and attention of 1 × 1 convolutions."""
    model = drawn(Emu3VQVAE, Emu3VQVAEConfig, **EMU3)
    original = {}
    for name, tensor in model.state_dict().items():
        for new, old in (
            ("down_block.down", "down"),
            ("up_block.up", "up"),
            ("middle_block.attn_norm", "mid.attn_1.norm"),
            ("middle_block", "mid"),
        ):
            name = name.replace(new, old)
        if "attn_norms." in name:
            head, _, rest = name.partition("attn_norms.")
            name = f"{head}attn.{rest[0]}.norm{rest[1:]}"
        for new, old in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "proj_out")):
            if f".{new}." in name:
                name = name.replace(new, old)
                tensor = tensor[..., None, None] if name.endswith("weight") else tensor
        original[name] = tensor
    assert "decoder.mid.attn_1.norm.conv_y.weight" in original
    assert original["encoder.down.2.attn.0.q.weight"].ndim == 4
    tokenizers = [load_published(each, source="emu3", image_size=32) for each in (model, original)]
    ours, theirs = (tokenizer.state_dict() for tokenizer in tokenizers)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_emu3_with_several_attention_heads_is_refused():
    model = drawn(Emu3VQVAE, Emu3VQVAEConfig, **EMU3, num_attention_heads=2)
    with pytest.raises(UserError, match="1 head here, as in the published tokenizer, got 2"):
        load_published(model, source="emu3")


CLASSES = {
    "chameleon": (ChameleonVQVAE, ChameleonVQVAEConfig, CHAMELEON),
    "janus": (JanusVQVAE, JanusVQVAEConfig, JANUS),
    "emu3": (Emu3VQVAE, Emu3VQVAEConfig, EMU3),
}


@pytest.mark.filterwarnings("ignore::visual_tokenizer.convert.MissingDecoderWarning")
@pytest.mark.parametrize("source", CLASSES)
def test_what_was_loaded_is_saved_bit_for_bit(source, tmp_path):
    kind, config, fields = CLASSES[source]
    model = drawn(kind, config, **fields)
    loaded = load_published(model, source=source)
    loaded.save_pretrained(tmp_path)
    for tokenizer in (loaded, VisualTokenizer.from_pretrained(tmp_path)):
        saved = save_published(tokenizer, source=source)
        assert saved.keys() == model.state_dict().keys()
        assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
    other = drawn(kind, config, **fields)
    other.load_state_dict(saved)


def test_another_architecture_has_no_place_in_a_layout():
    tokenizer = load_published(drawn(JanusVQVAE, JanusVQVAEConfig, **JANUS), source="janus")
    with pytest.raises(UserError, match="'emu3' holds encoder movq, got 'cnn'"):
        save_published(tokenizer, source="emu3")


def test_missing_and_unknown_weights_are_named():
    weights = drawn(JanusVQVAE, JanusVQVAEConfig, **JANUS).state_dict()
    del weights["decoder.mid.block_1.norm1.bias"]
    weights["decoder.extra"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"1 missing \(decoder.mid.block_1.norm1.bias\); 1 unexpected \(decoder.ext"):
        load_published(weights, source="janus")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::visual_tokenizer.convert.MissingDecoderWarning")
@pytest.mark.parametrize("source", CLASSES)
def test_the_published_widths(source):
    """The whole published configurations; pictures are smaller than the nominal size, to be done in seconds."""
    kind, config, _ = CLASSES[source]
    model = drawn(kind, config)
    tokenizer = load_published(model, source=source)
    assert sum(p.numel() for p in tokenizer.parameters()) == sum(p.numel() for p in model.parameters())
    pixels = pictures(64, 96)
    with torch.no_grad():
        if source == "emu3":
            expected, decoded = emu3_indices(model, pixels), model.decode
        else:
            expected = model.encode(pixels).image_tokens.view(2, 4, 6)
            decoded = lambda indices: janus_pixels(model, indices)  # noqa: E731
        assert torch.equal(tokenizer.encode(pixels), expected)
        if source != "chameleon":
            pixels = decoded(expected).clamp(-1, 1)
            torch.testing.assert_close(tokenizer.decode(expected), pixels, atol=1e-4, rtol=0)
