"""Open-MAGVIT2's picture tokenizers (`imagenet_128_L.ckpt`, `imagenet_256_L.ckpt`, `pretrain256_*.ckpt`).

Paper: Open-MAGVIT2 (Luo et al., 2024), arXiv:2409.04410; code TencentARC/SEED-Voken. Latents are quantized by their
signs, the first channel the least significant bit. Averaged weights are used where the checkpoint has them. Of a
checkpoint with factorised tokens the two small indices are the low and the high bits of the one that is given here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.convert.links import Link, Weights, biasless_residual, count_numbered, layer
from visual_tokenizer.convert.reading import EMA, with_averages
from visual_tokenizer.convert.sources.base import PublishedSource, PublishedSourceConfig, require_parts
from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class OpenMAGVIT2Config(PublishedSourceConfig):
    """Fields of the source of Open-MAGVIT2's tokenizers."""

    use_averages: bool = True
    """Whether averaged weights are taken where the checkpoint has them, as the published evaluation does."""


class OpenMAGVIT2(PublishedSource):
    """Encoder and decoder only: nothing of the quantizer is learned."""

    Config = OpenMAGVIT2Config
    anchor = "encoder.mid_block.0.conv1.weight"
    beside = ("loss.", "colorize", "quantize.", EMA)
    resample: ClassVar[Image.Resampling] = Image.Resampling.BILINEAR
    about = "Open-MAGVIT2 (Luo et al., 2024), https://github.com/TencentARC/SEED-Voken"

    def own(self, tensors: Weights) -> dict[str, Tensor]:
        return super().own(with_averages(tensors) if self.config.use_averages else tensors)

    def describe(self, published: Weights, image_size: int, settings: Mapping[str, Any]) -> VisualTokenizerConfig:
        try:
            channels = published["encoder.conv_in.weight"].shape[0]
            blocks = count_numbered(published, "encoder.mid_block.{}.conv1.weight")
            levels = count_numbered(published, "encoder.down.{}.block.0.conv1.weight")
            widths = [published[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
            bits = published["encoder.conv_out.weight"].shape[0]
        except KeyError as error:
            raise UserError(f"the checkpoint has no {error}") from error
        shape = {
            "channels": channels,
            "channel_multipliers": [width // channels for width in widths],
            "blocks_per_level": blocks,
            "latent_channels": bits,
        }
        side = 2 ** (levels - 1)
        return VisualTokenizerConfig(
            image_size=max(1, image_size // side) * side,
            encoder={"type": "open_magvit2", **shape},
            quantizer={"type": "lfq", "codebook_size": 2**bits, "index_order": "least_significant_first"},
            decoder={"type": "open_magvit2", **shape},
        )

    def links(self, config: VisualTokenizerConfig) -> list[Link]:
        own = ("open_magvit2",)
        require_parts(config, "open_magvit2", encoder=own, quantizer=("lfq",), decoder=own)
        if config.quantizer["index_order"] != "least_significant_first":
            raise UserError("the layout of 'open_magvit2' has index_order least_significant_first")
        encoder, decoder = EncoderConfig.family.config(config.encoder), DecoderConfig.family.config(config.decoder)
        return self._encoder(encoder) + self._decoder(decoder)

    def _encoder(self, shape: Any) -> list[Link]:
        links = layer("encoder.stem", "encoder.conv_in", has_bias=False)
        number, channels = 0, shape.level_channels[0]
        for level, leaving in enumerate(shape.level_channels):
            for block in range(shape.blocks_per_level):
                at = f"encoder.down.{level}.block.{block}"
                links += biasless_residual(f"encoder.layers.{number}", at, channels != leaving)
                number, channels = number + 1, leaving
            if level < len(shape.level_channels) - 1:
                links += layer(f"encoder.layers.{number}", f"encoder.down.{level}.downsample")
                number += 1
        for block in range(shape.blocks_per_level):
            links += biasless_residual(f"encoder.layers.{number + block}", f"encoder.mid_block.{block}", False)
        return links + layer("encoder.norm", "encoder.norm_out") + layer("encoder.head", "encoder.conv_out")

    def _decoder(self, shape: Any) -> list[Link]:
        links = layer("decoder.stem", "decoder.conv_in")
        for block in range(shape.blocks_per_level):
            links += biasless_residual(f"decoder.middle.{block}", f"decoder.mid_block.{block}", False)
        levels, channels = len(shape.level_channels), shape.level_channels[-1]
        for level, leaving in reversed(list(enumerate(shape.level_channels))):
            place = levels - 1 - level
            links += layer(f"decoder.norms.{place}.scale", f"decoder.adaptive.{level}.gamma")
            links += layer(f"decoder.norms.{place}.shift", f"decoder.adaptive.{level}.beta")
            for block in range(shape.blocks_per_level):
                at = f"decoder.up.{level}.block.{block}"
                links += biasless_residual(f"decoder.levels.{place}.{block}", at, channels != leaving)
                channels = leaving
            if level > 0:
                ours = f"decoder.levels.{place}.{shape.blocks_per_level}.conv"
                links += layer(ours, f"decoder.up.{level}.upsample.conv1")
        return links + layer("decoder.norm", "decoder.norm_out") + layer("decoder.head", "decoder.conv_out")
