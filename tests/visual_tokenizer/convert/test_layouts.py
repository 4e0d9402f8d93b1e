"""Published layouts that no installed package has: names and shapes as in the original code, and its arithmetic.

The weights of each layout are drawn here name by name; a few lines of plain functions say what the original network
computes from them.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from visual_tokenizer.convert import load_published, save_published
from visual_tokenizer.convert.conversion import build_source
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.errors import UserError

SIZE = 16


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)


class Weights(dict):
    """A state dict that is drawn as it is named."""

    def conv(self, name: str, out: int, entering: int, side: int, bias: bool = True) -> None:
        self[f"{name}.weight"] = torch.randn(out, entering, side, side) / (entering * side**2) ** 0.5
        if bias:
            self[f"{name}.bias"] = torch.randn(out) * 0.1

    def linear(self, name: str, out: int, entering: int) -> None:
        self[f"{name}.weight"] = torch.randn(out, entering) / entering**0.5
        self[f"{name}.bias"] = torch.randn(out) * 0.1

    def norm(self, name: str, channels: int) -> None:
        self[f"{name}.weight"], self[f"{name}.bias"] = torch.rand(channels) + 0.5, torch.randn(channels) * 0.1

    def block(self, name: str, entering: int, out: int, bias: bool = True, shortcut_from: int | None = None) -> None:
        self.norm(f"{name}.norm1", entering)
        self.conv(f"{name}.conv1", out, entering, 3, bias)
        self.norm(f"{name}.norm2", out)
        self.conv(f"{name}.conv2", out, out, 3, bias)
        if entering != out:
            self.conv(f"{name}.nin_shortcut", out, shortcut_from or entering, 1, bias)

    def attention(self, name: str, channels: int) -> None:
        self.norm(f"{name}.norm", channels)
        for part in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.{part}", channels, channels, 1)


def conv(w: Weights, name: str, x: Tensor, **options: int) -> Tensor:
    weight = w[f"{name}.weight"]
    options.setdefault("padding", weight.shape[-1] // 2)
    return F.conv2d(x, weight, w.get(f"{name}.bias"), **options)


def swished(w: Weights, name: str, x: Tensor) -> Tensor:
    x = F.group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-6)
    return x * torch.sigmoid(x)


def block(w: Weights, name: str, x: Tensor) -> Tensor:
    h = conv(w, f"{name}.conv1", swished(w, f"{name}.norm1", x))
    h = conv(w, f"{name}.conv2", swished(w, f"{name}.norm2", h))
    return h + (conv(w, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in w else x)


def attention(w: Weights, name: str, x: Tensor) -> Tensor:
    h = F.group_norm(x, 32, w[f"{name}.norm.weight"], w[f"{name}.norm.bias"], eps=1e-6)
    q, k, v = (conv(w, f"{name}.{part}", h).flatten(2) for part in ("q", "k", "v"))
    scores = torch.einsum("bci,bcj->bij", q, k) * q.shape[1] ** -0.5
    mixed = torch.einsum("bij,bcj->bci", scores.softmax(dim=2), v).view(x.shape)
    return x + conv(w, f"{name}.proj_out", mixed)


# VQGAN (32 channels, multipliers 1 and 2) under the names of taming-transformers and of LlamaGen.
TAMING = {
    "down": ("encoder.down.{}.block.{}", "encoder.down.{}.attn.{}", "encoder.down.{}.downsample.conv"),
    "up": ("decoder.up.{}.block.{}", "decoder.up.{}.attn.{}", "decoder.up.{}.upsample.conv"),
    "middle": ("mid.block_1", "mid.attn_1", "mid.block_2"),
    "up_levels": (0, 1),
}
LLAMAGEN = {
    "down": (
        "encoder.conv_blocks.{}.res.{}",
        "encoder.conv_blocks.{}.attn.{}",
        "encoder.conv_blocks.{}.downsample.conv",
    ),
    "up": ("decoder.conv_blocks.{}.res.{}", "decoder.conv_blocks.{}.attn.{}", "decoder.conv_blocks.{}.upsample.conv"),
    "middle": ("mid.0", "mid.1", "mid.2"),
    "up_levels": (1, 0),
}


def vqgan_weights(names: dict, *, z: int = 16, codes: int = 64, code_dim: int = 8) -> Weights:
    w = Weights()
    w.conv("encoder.conv_in", 32, 3, 3)
    down, down_attention, downsample = names["down"]
    w.block(down.format(0, 0), 32, 32)
    w.conv(downsample.format(0), 32, 32, 3)
    w.block(down.format(1, 0), 32, 64)
    w.attention(down_attention.format(1, 0), 64)
    first, middle, last = names["middle"]
    for side in ("encoder", "decoder"):
        w.block(f"{side}.{first}", 64, 64)
        w.attention(f"{side}.{middle}", 64)
        w.block(f"{side}.{last}", 64, 64)
    w.norm("encoder.norm_out", 64)
    w.conv("encoder.conv_out", z, 64, 3)
    w.conv("quant_conv", code_dim, z, 1)
    w["quantize.embedding.weight"] = torch.randn(codes, code_dim)
    w.conv("post_quant_conv", z, code_dim, 1)
    w.conv("decoder.conv_in", 64, z, 3)
    up, up_attention, upsample = names["up"]
    fine, coarse = names["up_levels"]
    for number in range(2):
        w.block(up.format(coarse, number), 64, 64)
        w.attention(up_attention.format(coarse, number), 64)
        w.block(up.format(fine, number), 64 if number == 0 else 32, 32)
    w.conv(upsample.format(coarse), 64, 64, 3)
    w.norm("decoder.norm_out", 32)
    w.conv("decoder.conv_out", 3, 32, 3)
    return w


def vqgan_latents(w: Weights, names: dict, x: Tensor) -> Tensor:
    down, down_attention, downsample = names["down"]
    h = block(w, down.format(0, 0), conv(w, "encoder.conv_in", x))
    h = conv(w, downsample.format(0), F.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
    h = attention(w, down_attention.format(1, 0), block(w, down.format(1, 0), h))
    first, middle, last = (f"encoder.{name}" for name in names["middle"])
    h = block(w, last, attention(w, middle, block(w, first, h)))
    return conv(w, "quant_conv", conv(w, "encoder.conv_out", swished(w, "encoder.norm_out", h)))


def vqgan_pixels(w: Weights, names: dict, codes: Tensor) -> Tensor:
    up, up_attention, upsample = names["up"]
    fine, coarse = names["up_levels"]
    h = conv(w, "decoder.conv_in", conv(w, "post_quant_conv", codes))
    first, middle, last = (f"decoder.{name}" for name in names["middle"])
    h = block(w, last, attention(w, middle, block(w, first, h)))
    for number in range(2):
        h = attention(w, up_attention.format(coarse, number), block(w, up.format(coarse, number), h))
    h = conv(w, upsample.format(coarse), h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
    for number in range(2):
        h = block(w, up.format(fine, number), h)
    return conv(w, "decoder.conv_out", swished(w, "decoder.norm_out", h)).clamp(-1, 1)


def nearest(latents: Tensor, codebook: Tensor) -> Tensor:
    """Indices (B, h, w) of latents (B, C, h, w)."""
    return (latents.permute(0, 2, 3, 1)[..., None, :] - codebook).square().sum(dim=-1).argmin(dim=-1)


def picked(codebook: Tensor, indices: Tensor) -> Tensor:
    return codebook[indices].permute(0, 3, 1, 2)


def check(tokenizer: VisualTokenizer, x: Tensor, indices: Tensor, pixels: Tensor) -> None:
    assert torch.equal(tokenizer.encode(x), indices)
    assert indices.unique().numel() > 10
    assert pixels.std() > 0.05
    torch.testing.assert_close(tokenizer.decode(indices), pixels, atol=1e-4, rtol=0)


def check_round_trip(tokenizer: VisualTokenizer, weights: dict, source: str, **fields: object) -> None:
    saved = save_published(tokenizer, source, **fields)
    assert saved.keys() == weights.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_vqgan(size):
    w = vqgan_weights(TAMING)
    x = torch.rand(2, 3, *size) * 2 - 1
    extra = {"loss.discriminator.main.0.weight": torch.zeros(1), "loss.perceptual_loss.lin0.weight": torch.zeros(1)}
    tokenizer = load_published({"epoch": 3, "state_dict": {**w, **extra}}, source="vqgan", image_size=SIZE)
    indices = nearest(vqgan_latents(w, TAMING, x), w["quantize.embedding.weight"])
    check(tokenizer, x, indices, vqgan_pixels(w, TAMING, picked(w["quantize.embedding.weight"], indices)))
    check_round_trip(tokenizer, w, "vqgan")
    assert tokenizer.config.quantizer["loss_weighting"] == "legacy"  # β weighs the codebook loss in that code


def test_gumbel_vqgan():
    w = vqgan_weights(TAMING, z=8)
    w.conv("quantize.proj", 64, 8, 1)
    w["quantize.embed.weight"] = w.pop("quantize.embedding.weight")
    x = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    tokenizer = load_published(w, source="vqgan", image_size=SIZE)
    indices = conv(w, "quantize.proj", vqgan_latents(w, TAMING, x)).argmax(dim=1)
    check(tokenizer, x, indices, vqgan_pixels(w, TAMING, picked(w["quantize.embed.weight"], indices)))
    check_round_trip(tokenizer, w, "vqgan")


@pytest.mark.parametrize("normalize", [True, False])
def test_llamagen(normalize):
    w = vqgan_weights(LLAMAGEN)
    x = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    found = {"model": {**w, "quantize.codebook_used": torch.zeros(65536)}}
    tokenizer = load_published(found, source="llamagen", image_size=SIZE, normalize=normalize)
    latents, codebook = vqgan_latents(w, LLAMAGEN, x), w["quantize.embedding.weight"]
    if normalize:
        latents, codebook = F.normalize(latents, dim=1), F.normalize(codebook, dim=1)
    indices = nearest(latents, codebook)
    check(tokenizer, x, indices, vqgan_pixels(w, LLAMAGEN, picked(codebook, indices)))
    check_round_trip(tokenizer, w, "llamagen", normalize=normalize)


def test_the_original_janus_is_a_llamagen():
    w = vqgan_weights(LLAMAGEN)
    janus = {f"gen_vision_model.{name}": tensor for name, tensor in w.items()} | {"gen_embed.weight": torch.zeros(1)}
    check_round_trip(load_published(janus, source="llamagen", image_size=SIZE), w, "llamagen")


@pytest.mark.parametrize("use_averages", [True, False])
def test_ibq(use_averages):
    w, averages = vqgan_weights(TAMING), vqgan_weights(TAMING)
    stored = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in averages.items()}
    stored |= {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(9)}
    tokenizer = load_published({**w, **stored}, source="ibq", image_size=SIZE, use_averages=use_averages)
    w = averages if use_averages else w
    x = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    codebook = w["quantize.embedding.weight"]
    logits = torch.einsum("bdhw,nd->bnhw", vqgan_latents(w, TAMING, x), codebook)
    indices = logits.argmax(dim=1)
    assert not torch.equal(indices, nearest(vqgan_latents(w, TAMING, x), codebook))
    check(tokenizer, x, indices, vqgan_pixels(w, TAMING, picked(codebook, indices)))
    check_round_trip(tokenizer, w, "ibq")


def magvit2_weights(*, bits: int = 6, blocks: int = 2) -> Weights:
    w = Weights()
    w.conv("encoder.conv_in", 32, 3, 3, bias=False)
    for number in range(blocks):
        w.block(f"encoder.down.0.block.{number}", 32, 32, bias=False)
        w.block(f"encoder.down.1.block.{number}", 32 if number == 0 else 64, 64, bias=False)
        w.block(f"encoder.mid_block.{number}", 64, 64, bias=False)
        w.block(f"decoder.mid_block.{number}", 64, 64, bias=False)
        w.block(f"decoder.up.1.block.{number}", 64, 64, bias=False)
        w.block(f"decoder.up.0.block.{number}", 64 if number == 0 else 32, 32, bias=False)
    w.conv("encoder.down.0.downsample", 32, 32, 3)
    w.norm("encoder.norm_out", 64)
    w.conv("encoder.conv_out", bits, 64, 1)
    w.conv("decoder.conv_in", 64, bits, 3)
    for level in (0, 1):
        w.linear(f"decoder.adaptive.{level}.gamma", 64, bits)
        w.linear(f"decoder.adaptive.{level}.beta", 64, bits)
    w.conv("decoder.up.1.upsample.conv1", 256, 64, 3)
    w.norm("decoder.norm_out", 32)
    w.conv("decoder.conv_out", 3, 32, 3)
    return w


def magvit2_latents(w: Weights, x: Tensor) -> Tensor:
    h = conv(w, "encoder.conv_in", x)
    for number in range(2):
        h = block(w, f"encoder.down.0.block.{number}", h)
    h = conv(w, "encoder.down.0.downsample", h, stride=2, padding=1)
    for at in ("down.1.block", "mid_block"):
        for number in range(2):
            h = block(w, f"encoder.{at}.{number}", h)
    return conv(w, "encoder.conv_out", swished(w, "encoder.norm_out", h))


def magvit2_pixels(w: Weights, codes: Tensor) -> Tensor:
    h = conv(w, "decoder.conv_in", codes)
    for number in range(2):
        h = block(w, f"decoder.mid_block.{number}", h)
    for level in (1, 0):
        deviation = (codes.flatten(2).var(dim=2) + 1e-6).sqrt()
        scale, shift = (
            F.linear(of, w[f"decoder.adaptive.{level}.{name}.weight"], w[f"decoder.adaptive.{level}.{name}.bias"])
            for name, of in (("gamma", deviation), ("beta", codes.flatten(2).mean(dim=2)))
        )
        h = scale[..., None, None] * F.group_norm(h, 32, eps=1e-6) + shift[..., None, None]
        for number in range(2):
            h = block(w, f"decoder.up.{level}.block.{number}", h)
        if level:
            wide = conv(w, "decoder.up.1.upsample.conv1", h)  # channel (p · 2 + q) · C + c is c at row p, column q
            quarters = wide.unflatten(1, (2, 2, -1))
            rows = [torch.stack([quarters[:, p, 0], quarters[:, p, 1]], dim=-1).flatten(-2) for p in (0, 1)]
            h = torch.stack(rows, dim=3).flatten(2, 3)
    return conv(w, "decoder.conv_out", swished(w, "decoder.norm_out", h)).clamp(-1, 1)


@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_open_magvit2(size):
    w, averages = magvit2_weights(), magvit2_weights()
    stored = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in averages.items()}
    extra = {"loss.lpips.weight": torch.zeros(1), "model_ema.decay": torch.tensor(0.999)}
    tokenizer = load_published({**w, **stored, **extra}, source="open_magvit2", image_size=SIZE)
    w = averages
    x = torch.rand(2, 3, *size) * 2 - 1
    bits = magvit2_latents(w, x) > 0
    indices = sum(bits[:, number].long() << number for number in range(6))
    check(tokenizer, x, indices, magvit2_pixels(w, bits.float() * 2 - 1))
    check_round_trip(tokenizer, w, "open_magvit2")


WIDTH, LATENTS, PATCH, PROXIES = 32, 24, 4, 16


def titok_weights() -> Weights:
    w = Weights()
    w["latent_tokens"] = torch.randn(LATENTS, WIDTH)
    w.conv("encoder.patch_embed", WIDTH, 3, PATCH)
    w.conv("encoder.conv_out", 12, WIDTH, 1)
    w["quantize.embedding.weight"] = torch.randn(64, 12)
    w.linear("decoder.decoder_embed", WIDTH, 12)
    w["decoder.mask_token"] = torch.randn(1, 1, WIDTH)
    w.conv("decoder.ffn.0", 2 * WIDTH, WIDTH, 1)
    w.conv("decoder.ffn.2", PROXIES, 2 * WIDTH, 1)
    for side in ("encoder", "decoder"):
        w[f"{side}.class_embedding"] = torch.randn(1, WIDTH)
        w[f"{side}.positional_embedding"] = torch.randn((SIZE // PATCH) ** 2 + 1, WIDTH)
        w[f"{side}.latent_token_positional_embedding"] = torch.randn(LATENTS, WIDTH)
        for name in ("ln_pre", "ln_post"):
            w.norm(f"{side}.{name}", WIDTH)
        for number in range(2):
            at = f"{side}.transformer.{number}"
            w.norm(f"{at}.ln_1", WIDTH)
            w.norm(f"{at}.ln_2", WIDTH)
            w[f"{at}.attn.in_proj_weight"] = torch.randn(3 * WIDTH, WIDTH) / WIDTH**0.5
            w[f"{at}.attn.in_proj_bias"] = torch.randn(3 * WIDTH) * 0.1
            w.linear(f"{at}.attn.out_proj", WIDTH, WIDTH)
            w.linear(f"{at}.mlp.c_fc", 4 * WIDTH, WIDTH)
            w.linear(f"{at}.mlp.c_proj", WIDTH, 4 * WIDTH)
    w["pixel_quantize.embedding.weight"] = torch.randn(PROXIES, 16)
    w.conv("pixel_decoder.conv_in", 64, 16, 3)
    w.block("pixel_decoder.mid.0", 64, 64, bias=False)
    for level, entering, out in ((2, 64, 64), (1, 64, 32), (0, 32, 32)):
        w.block(f"pixel_decoder.up.{level}.block.0", entering, out, bias=False, shortcut_from=out)
        if level:
            w.conv(f"pixel_decoder.up.{level}.upsample_conv", out, out, 3)
    w.norm("pixel_decoder.norm_out", 32)
    w.conv("pixel_decoder.conv_out", 3, 32, 3)
    return w


def titok_transformer(w: Weights, side: str, x: Tensor, heads: int) -> Tensor:
    def norm(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, (WIDTH,), w[f"{side}.{name}.weight"], w[f"{side}.{name}.bias"])

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, w[f"{side}.{name}.weight"], w[f"{side}.{name}.bias"])

    x = norm("ln_pre", x)
    for number in range(2):
        at = f"{side}.transformer.{number}.attn"
        mixed, _ = F.multi_head_attention_forward(
            *[norm(f"transformer.{number}.ln_1", x).transpose(0, 1)] * 3,
            *(WIDTH, heads, w[f"{at}.in_proj_weight"], w[f"{at}.in_proj_bias"], None, None, False, 0.0),
            *(w[f"{at}.out_proj.weight"], w[f"{at}.out_proj.bias"]),
            need_weights=False,
        )
        x = x + mixed.transpose(0, 1)
        hidden = linear(f"transformer.{number}.mlp.c_fc", norm(f"transformer.{number}.ln_2", x))
        x = x + linear(f"transformer.{number}.mlp.c_proj", F.gelu(hidden))
    return x


def titok_latents(w: Weights, x: Tensor, heads: int) -> Tensor:
    """(B, 12, LATENTS) of pixels in [0, 1], with the reshape that mixes positions and channels."""
    patches = F.conv2d(x, w["encoder.patch_embed.weight"], w["encoder.patch_embed.bias"], stride=PATCH)
    sequence = torch.cat([w["encoder.class_embedding"].expand(len(x), 1, -1), patches.flatten(2).mT], dim=1)
    sequence = sequence + w["encoder.positional_embedding"]
    latents = (w["latent_tokens"] + w["encoder.latent_token_positional_embedding"]).expand(len(x), -1, -1)
    mixed = titok_transformer(w, "encoder", torch.cat([sequence, latents], dim=1), heads)[:, sequence.shape[1] :]
    mixed = F.layer_norm(mixed, (WIDTH,), w["encoder.ln_post.weight"], w["encoder.ln_post.bias"])
    return conv(w, "encoder.conv_out", mixed.reshape(len(x), WIDTH, LATENTS, 1))[..., 0]


def titok_pixels(w: Weights, codes: Tensor, heads: int) -> Tensor:
    """Pixels in [0, 1] of codes (B, LATENTS, 12)."""
    side = SIZE // PATCH
    x = F.linear(codes, w["decoder.decoder_embed.weight"], w["decoder.decoder_embed.bias"])
    head = w["decoder.class_embedding"].expand(len(x), 1, -1)
    masks = torch.cat([head, w["decoder.mask_token"].expand(len(x), side**2, -1)], dim=1)
    masks = masks + w["decoder.positional_embedding"]
    latents = x + w["decoder.latent_token_positional_embedding"]
    mixed = titok_transformer(w, "decoder", torch.cat([masks, latents], dim=1), heads)[:, 1 : 1 + side**2]
    mixed = F.layer_norm(mixed, (WIDTH,), w["decoder.ln_post.weight"], w["decoder.ln_post.bias"])
    h = mixed.mT.reshape(len(x), WIDTH, side, side)
    logits = conv(w, "decoder.ffn.2", torch.tanh(conv(w, "decoder.ffn.0", h)))
    h = torch.einsum("nchw,cd->ndhw", logits.softmax(dim=1), w["pixel_quantize.embedding.weight"])

    def maskgit_block(name: str, x: Tensor) -> Tensor:
        h = conv(w, f"{name}.conv1", swished(w, f"{name}.norm1", x))
        h = conv(w, f"{name}.conv2", swished(w, f"{name}.norm2", h))
        return h + (conv(w, f"{name}.nin_shortcut", h) if f"{name}.nin_shortcut.weight" in w else x)

    h = maskgit_block("pixel_decoder.mid.0", conv(w, "pixel_decoder.conv_in", h))
    for level in (2, 1, 0):
        h = maskgit_block(f"pixel_decoder.up.{level}.block.0", h)
        if level:
            doubled = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            h = conv(w, f"pixel_decoder.up.{level}.upsample_conv", doubled)
    return conv(w, "pixel_decoder.conv_out", swished(w, "pixel_decoder.norm_out", h))


@pytest.mark.parametrize("normalize", [True, False])
def test_titok(normalize):
    w = titok_weights()
    x = torch.rand(3, 3, SIZE, SIZE) * 2 - 1
    tokenizer = load_published(w, source="titok", normalize=normalize, head_channels=8)
    latents, codebook = titok_latents(w, (x + 1) / 2, heads=4).mT, w["quantize.embedding.weight"]
    if normalize:
        latents, codebook = F.normalize(latents, dim=2), F.normalize(codebook, dim=1)
    indices = torch.cdist(latents, codebook[None].expand(3, -1, -1)).argmin(dim=2)
    check(tokenizer, x, indices, (2 * titok_pixels(w, codebook[indices], heads=4) - 1).clamp(-1, 1))
    check_round_trip(tokenizer, w, "titok", normalize=normalize)


def test_titok_of_the_first_stage_is_refused():
    w = {name: tensor for name, tensor in titok_weights().items() if not name.startswith("pixel_")}
    with pytest.raises(UserError, match="no pixel decoder"):
        load_published(w, source="titok", head_channels=8)


CHANNELS, CODES, INITIAL = 8, 64, 6


def dalle_weights() -> tuple[Weights, Weights]:
    def convolution(w: Weights, name: str, out: int, entering: int, side: int) -> None:
        w[f"{name}.w"] = torch.randn(out, entering, side, side) / (entering * side**2) ** 0.5
        w[f"{name}.b"] = torch.randn(out) * 0.1

    def groups(w: Weights, widths: list[int], sides: tuple[int, ...]) -> None:
        for group in range(1, 5):
            for number in (1, 2):
                at = f"blocks.group_{group}.block_{number}"
                entering, out = widths[group - 1] if number == 1 else widths[group], widths[group]
                if entering != out:
                    convolution(w, f"{at}.id_path", out, entering, 1)
                inner = [entering, out // 4, out // 4, out // 4, out]
                for place, side in enumerate(sides):
                    convolution(w, f"{at}.res_path.conv_{place + 1}", inner[place + 1], inner[place], side)

    encoder, decoder = Weights(), Weights()
    convolution(encoder, "blocks.input", CHANNELS, 3, 7)
    groups(encoder, [CHANNELS, CHANNELS, 2 * CHANNELS, 4 * CHANNELS, 8 * CHANNELS], (3, 3, 3, 1))
    convolution(encoder, "blocks.output.conv", CODES, 8 * CHANNELS, 1)
    convolution(decoder, "blocks.input", INITIAL, CODES, 1)
    groups(decoder, [INITIAL, 8 * CHANNELS, 4 * CHANNELS, 2 * CHANNELS, CHANNELS], (1, 3, 3, 3))
    convolution(decoder, "blocks.output.conv", 6, CHANNELS, 1)
    return encoder, decoder


def dalle_network(w: Weights, x: Tensor, between) -> Tensor:
    def convolution(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, w[f"{name}.w"], w[f"{name}.b"], padding=w[f"{name}.w"].shape[-1] // 2)

    x = convolution("blocks.input", x)
    for group in range(1, 5):
        for number in (1, 2):
            at = f"blocks.group_{group}.block_{number}"
            h = x
            for place in range(1, 5):
                h = convolution(f"{at}.res_path.conv_{place}", h.relu())
            x = (convolution(f"{at}.id_path", x) if f"{at}.id_path.w" in w else x) + h / 64
        x = between(x) if group < 4 else x
    return convolution("blocks.output.conv", x.relu())


@pytest.mark.parametrize("size", [(32, 32), (16, 24)])
def test_dalle(size):
    encoder, decoder = dalle_weights()
    x = torch.rand(8, 3, *size) * 2 - 1
    mapped = 0.8 * (x + 1) / 2 + 0.1
    logits = dalle_network(encoder, mapped, lambda h: F.max_pool2d(h, 2))
    encoder["blocks.output.conv.b"] -= logits.mean(dim=(0, 2, 3))  # else one code wins everywhere
    tokenizer = load_published(encoder, source="dalle", decoder=decoder)
    indices = dalle_network(encoder, mapped, lambda h: F.max_pool2d(h, 2)).argmax(dim=1)
    onehot = F.one_hot(indices, CODES).permute(0, 3, 1, 2).float()
    statistics = dalle_network(decoder, onehot, lambda h: F.interpolate(h, scale_factor=2))
    pixels = (2 * (statistics[:, :3].sigmoid() - 0.1) / 0.8 - 1).clamp(-1, 1)
    assert torch.equal(tokenizer.encode(x), indices)
    assert indices.unique().numel() > 10
    torch.testing.assert_close(tokenizer.decode(indices), pixels, atol=1e-4, rtol=0)
    both = {f"encoder.{name}": tensor for name, tensor in encoder.items()}
    both |= {f"decoder.{name}": tensor for name, tensor in decoder.items()}
    check_round_trip(tokenizer, both, "dalle")
    joined = load_published(both, source="dalle")
    assert torch.equal(joined.decode(indices), tokenizer.decode(indices))


def test_dalle_without_its_decoder_is_refused():
    with pytest.raises(UserError, match=r"give decoder.pkl's too"):
        load_published(dalle_weights()[0], source="dalle")


LLAMAGEN_PARAMETERS = 71_883_403
"""Of `VQ-16`, as counted from the original class."""


def test_the_default_networks_are_the_published_ones():
    """LlamaGen's VQ-16 has 71.9 million parameters; its layout has a place for each."""
    quantizer = {"type": "vq", "codebook_size": 16384, "code_dim": 8, "normalize": True, "update": {"type": "gradient"}}
    config = VisualTokenizerConfig(encoder={"type": "cnn"}, decoder={"type": "cnn"}, quantizer=quantizer)
    with torch.device("meta"):
        tokenizer = VisualTokenizer(config)
    linked = {link.ours for link in build_source("llamagen").links(config)}
    assert linked == {name for name, _ in tokenizer.named_parameters()}
    assert sum(parameter.numel() for parameter in tokenizer.parameters()) == LLAMAGEN_PARAMETERS


def test_open_magvit2_at_the_published_size():
    """The layout has a place for every parameter of the network of 2^18 codes."""
    order = {"index_order": "least_significant_first"}
    config = VisualTokenizerConfig(
        encoder={"type": "open_magvit2"},
        quantizer={"type": "lfq", "codebook_size": 2**18, **order},
        decoder={"type": "open_magvit2"},
    )
    with torch.device("meta"):
        tokenizer = VisualTokenizer(config)
        assert EncoderConfig.family.build(config.encoder, image_size=256).token_grid(256, 256) == (16, 16)
    linked = {link.ours for link in build_source("open_magvit2").links(config)}
    assert linked == {name for name, _ in tokenizer.named_parameters()}
