"""TiTok's two-stage tokenizers (TiTok-L-32, TiTok-B-64, TiTok-S-128).

Paper: An Image is Worth 32 Tokens for Reconstruction and Generation (Yu et al., 2024), arXiv:2406.07550; code
bytedance/1d-tokenizer. A checkpoint of the first stage alone gives proxy codes, not pixels, and is refused; so are the
later single-stage and VAE models, which have another decoder or no codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.convert.links import Link, Weights, biasless_residual, count_numbered, layer
from visual_tokenizer.convert.sources.base import PublishedSource, PublishedSourceConfig, require_parts
from visual_tokenizer.convert.vqgan_layout import CODEBOOK
from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.errors import UserError

HEAD_WIDTHS = {512: 8, 768: 12, 1024: 16}
"""Attention heads of the published widths (small, base, large); the weights do not tell."""


@dataclass(kw_only=True)
class TiTokConfig(PublishedSourceConfig):
    """Fields of the source of TiTok's tokenizers."""

    normalize: bool = True
    """Whether codes and latents are put on the unit sphere (`use_l2_norm`), as in the two-stage models."""

    head_channels: Annotated[int, Ge(1)] | None = None
    """Channels of an attention head; null: what the published widths 512, 768 and 1024 have, 64."""


class TiTok(PublishedSource):
    """Two transformers, a codebook, and MaskGIT's decoder and codebook."""

    Config = TiTokConfig
    anchor = "latent_tokens"
    about = "TiTok (Yu et al., 2024), https://github.com/bytedance/1d-tokenizer"

    def describe(self, published: Weights, image_size: int, settings: Mapping[str, Any]) -> VisualTokenizerConfig:
        if "pixel_quantize.embedding.weight" not in published or "decoder.ffn.2.weight" not in published:
            raise UserError(
                "the checkpoint has no pixel decoder (pixel_quantize, pixel_decoder): only two-stage TiTok tokenizers "
                "after their second stage give pixels of their own"
            )
        if "quantize.embedding.weight" not in published:
            raise UserError("the checkpoint has no quantize.embedding.weight: TiTok's VAEs have no codes")
        patch = published["encoder.patch_embed.weight"].shape[-1]
        side = round((published["encoder.positional_embedding"].shape[0] - 1) ** 0.5)
        if self.config.image_size not in (None, patch * side):
            raise UserError(f"image_size must be {patch * side}, which the position embeddings are for")
        codes, channels = published["quantize.embedding.weight"].shape
        levels = count_numbered(published, "pixel_decoder.up.{}.block.0.conv1.weight")
        widths = [published[f"pixel_decoder.up.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
        proxies, latent_channels = published["pixel_quantize.embedding.weight"].shape
        pixel_decoder = {
            "type": "maskgit",
            "channels": widths[0],
            "channel_multipliers": [width // widths[0] for width in widths],
            "blocks_per_level": count_numbered(published, "pixel_decoder.mid.{}.conv1.weight"),
            "latent_channels": latent_channels,
        }
        quantizer = {"type": "vq", "codebook_size": codes, "code_dim": channels, "update": {"type": "gradient"}}
        return VisualTokenizerConfig(
            image_size=patch * side,
            encoder={"type": "titok", **self._shape(published, "encoder", patch), "reshapes_latents": True},
            quantizer={**quantizer, "normalize": self.config.normalize},
            decoder={
                "type": "titok",
                **self._shape(published, "decoder", patch),
                "patches": {
                    "type": "proxy_codes",
                    "width": published["decoder.ffn.0.weight"].shape[1],
                    "codebook_size": proxies,
                    "proxy": pixel_decoder,
                    "trained": True,
                },
            },
        )

    def _shape(self, published: Weights, side: str, patch: int) -> dict[str, int]:
        num_latents, width = published[f"{side}.latent_token_positional_embedding"].shape
        depth = count_numbered(published, f"{side}.transformer.{{}}.ln_1.weight")
        if self.config.head_channels is None and width not in HEAD_WIDTHS:
            raise UserError(f"head_channels must be given: a width of {width} is none of the published {HEAD_WIDTHS}")
        heads = width // self.config.head_channels if self.config.head_channels else HEAD_WIDTHS[width]
        return {"num_latents": num_latents, "width": width, "depth": depth, "heads": heads, "patch_size": patch}

    def links(self, config: VisualTokenizerConfig) -> list[Link]:
        require_parts(config, "titok", encoder=("titok",), quantizer=("vq",), decoder=("titok",))
        encoder, decoder = EncoderConfig.family.config(config.encoder), DecoderConfig.family.config(config.decoder)
        patches = decoder.patches
        if patches.type != "proxy_codes" or patches.proxy.type != "maskgit" or not encoder.reshapes_latents:
            raise UserError("the layout of 'titok' holds proxy_codes with a maskgit proxy, and reshapes_latents")
        links = [CODEBOOK, Link("encoder.latents", ("latent_tokens",))]
        links += layer("encoder.patch_embedding", "encoder.patch_embed")
        links += layer("to_codes", "encoder.conv_out", ones=2) + layer("from_codes", "decoder.decoder_embed")
        links += _transformer("encoder", encoder.depth) + _transformer("decoder", decoder.depth)
        links.append(Link("decoder.mask_token", ("decoder.mask_token",)))
        links += layer("decoder.patches.head.0", "decoder.ffn.0", ones=2)
        links += layer("decoder.patches.head.2", "decoder.ffn.2", ones=2)
        links.append(Link("decoder.patches.codes", ("pixel_quantize.embedding.weight",)))
        return links + _maskgit("decoder.patches.proxy", patches.proxy)


def _transformer(side: str, depth: int) -> list[Link]:
    links = [
        Link(f"{side}.class_embedding", (f"{side}.class_embedding",)),
        Link(f"{side}.positions", (f"{side}.positional_embedding",)),
        Link(f"{side}.latent_positions", (f"{side}.latent_token_positional_embedding",)),
    ]
    links += layer(f"{side}.transformer.norm_before", f"{side}.ln_pre") + layer(f"{side}.norm", f"{side}.ln_post")
    for number in range(depth):
        ours, theirs = f"{side}.transformer.blocks.{number}", f"{side}.transformer.{number}"
        links += layer(f"{ours}.attention_norm", f"{theirs}.ln_1")
        links.append(Link(f"{ours}.query_key_value.weight", (f"{theirs}.attn.in_proj_weight",)))
        links.append(Link(f"{ours}.query_key_value.bias", (f"{theirs}.attn.in_proj_bias",)))
        links += layer(f"{ours}.projection", f"{theirs}.attn.out_proj")
        links += layer(f"{ours}.feed_forward_norm", f"{theirs}.ln_2")
        links += layer(f"{ours}.expand", f"{theirs}.mlp.c_fc") + layer(f"{ours}.contract", f"{theirs}.mlp.c_proj")
    return links


def _maskgit(ours: str, shape: Any) -> list[Link]:
    links = layer(f"{ours}.stem", "pixel_decoder.conv_in")
    number, channels = 0, shape.level_channels[-1]
    for block in range(shape.blocks_per_level):
        links += biasless_residual(f"{ours}.layers.{number}", f"pixel_decoder.mid.{block}", False)
        number += 1
    for level, leaving in reversed(list(enumerate(shape.level_channels))):
        for block in range(shape.blocks_per_level):
            at = f"pixel_decoder.up.{level}.block.{block}"
            links += biasless_residual(f"{ours}.layers.{number}", at, channels != leaving)
            number, channels = number + 1, leaving
        if level > 0:
            links += layer(f"{ours}.layers.{number}.conv", f"pixel_decoder.up.{level}.upsample_conv")
            number += 1
    return links + layer(f"{ours}.norm", "pixel_decoder.norm_out") + layer(f"{ours}.head", "pixel_decoder.conv_out")
