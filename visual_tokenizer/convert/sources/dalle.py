"""The dVAE of DALL·E (`encoder.pkl`, `decoder.pkl`), its tensors written as safetensors first.

Paper: Zero-Shot Text-to-Image Generation (Ramesh et al., 2021), arXiv:2102.12092; code openai/DALL-E. The two published
files are pickled modules, which are never loaded here. Where you trust them, `torch.load(FILE,
weights_only=False).state_dict()` beside that code gives the tensors to save; hand the encoder's as the weights and the
decoder's as `decoder`, or both in one file under `encoder.` and `decoder.`.

The published decoder begins with a 1 × 1 convolution of a one-hot vector. That is a codebook of as many channels as
leave it; here a code has the channels of a latent, so that the logits are the published ones, and the rest of it is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.convert.links import Link, Weights
from visual_tokenizer.convert.sources.base import PublishedSource, PublishedSourceConfig, require_parts
from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.dvae import DOWNSAMPLING, GROUPS

CODES = "decoder.blocks.input.w"


@dataclass(kw_only=True)
class DALLEConfig(PublishedSourceConfig):
    """Fields of the source of DALL·E's dVAE."""


class DALLE(PublishedSource):
    """Bottleneck blocks in four groups on each side; the last and the first convolution are the quantizer's."""

    Config = DALLEConfig
    anchor = "encoder.blocks.input.w"
    resample: ClassVar[Image.Resampling] = Image.Resampling.LANCZOS
    about = "DALL·E's dVAE (Ramesh et al., 2021), https://github.com/openai/DALL-E"

    def own(self, tensors: Weights) -> dict[str, Tensor]:
        if "blocks.input.w" in tensors and "blocks.output.conv.w" in tensors:
            return {f"encoder.{name}": tensors[name] for name in tensors}  # the encoder's own file
        return super().own(tensors)

    def join(self, own: dict[str, Tensor], decoder: Weights) -> dict[str, Tensor]:
        if "blocks.input.w" not in decoder:
            raise UserError("the decoder's weights have no blocks.input.w")
        return own | {f"decoder.{name}": decoder[name] for name in decoder}

    def describe(self, published: Weights, image_size: int, settings: Mapping[str, Any]) -> VisualTokenizerConfig:
        if CODES not in published:
            raise UserError("the checkpoint has no decoder, whose first weights are the codes: give decoder.pkl's too")
        codes, channels = published["encoder.blocks.output.conv.w"].shape[:2]
        return VisualTokenizerConfig(
            image_size=max(1, image_size // DOWNSAMPLING) * DOWNSAMPLING,
            encoder={
                "type": "dvae",
                "channels": published["encoder.blocks.input.w"].shape[0],
                "blocks_per_group": _blocks(published, "encoder"),
            },
            quantizer={"type": "gumbel", "codebook_size": codes, "code_dim": channels},
            decoder={
                "type": "dvae",
                "channels": published["decoder.blocks.output.conv.w"].shape[1],
                "blocks_per_group": _blocks(published, "decoder"),
                "code_channels": published[CODES].shape[0],
            },
        )

    def links(self, config: VisualTokenizerConfig) -> list[Link]:
        require_parts(config, "dalle", encoder=("dvae",), quantizer=("gumbel",), decoder=("dvae",))
        encoder, decoder = EncoderConfig.family.config(config.encoder), DecoderConfig.family.config(config.decoder)
        top = 2 ** (GROUPS - 1)
        widths = [encoder.channels] + [2**number * encoder.channels for number in range(GROUPS)]
        links = _convolution("encoder.blocks.input", "encoder.blocks.input")
        links += _groups("encoder", widths, encoder.blocks_per_group)
        links += _convolution("quantizer.to_logits", "encoder.blocks.output.conv", ones=2)
        widths = [decoder.code_channels] + [top // 2**number * decoder.channels for number in range(GROUPS)]
        links += _groups("decoder", widths, decoder.blocks_per_group)
        links += _convolution("decoder.blocks.output.conv", "decoder.blocks.output.conv")
        return [*links, Link("from_codes.bias", ("decoder.blocks.input.b",))]

    def read(self, published: Weights, config: VisualTokenizerConfig) -> dict[str, Tensor]:
        rest = {name: tensor for name, tensor in published.items() if name != CODES}
        state = super().read(rest, config)
        table = published[CODES].flatten(1).t()  # (K, channels that enter the decoder's first block)
        latent_channels, code_channels = config.quantizer["code_dim"], table.shape[1]
        if code_channels > latent_channels:
            raise UserError(f"a code of the decoder has {code_channels} channels, a latent only {latent_channels}")
        state["quantizer.codebook"] = torch.nn.functional.pad(table, (0, latent_channels - code_channels))
        state["from_codes.weight"] = torch.eye(code_channels, latent_channels)
        state["to_codes.weight"], state["to_codes.bias"] = torch.eye(latent_channels), torch.zeros(latent_channels)
        return state

    def write(self, state: Weights, config: VisualTokenizerConfig) -> dict[str, Tensor]:
        channels = config.decoder["code_channels"]
        width = config.quantizer["code_dim"]
        plain = {"to_codes.weight": torch.eye(width), "from_codes.weight": torch.eye(channels, width)}
        if not all(torch.equal(state[name].cpu(), weight) for name, weight in plain.items()):
            raise UserError("the layout of 'dalle' has no place for maps to and from codes that were trained on")
        table = state["quantizer.codebook"][:, :channels].t()
        return super().write(state, config) | {CODES: table[..., None, None].contiguous()}


def _convolution(ours: str, theirs: str, *, ones: int = 0) -> list[Link]:
    return [Link(f"{ours}.weight", (f"{theirs}.w",), ones), Link(f"{ours}.bias", (f"{theirs}.b",))]


def _groups(side: str, widths: list[int], blocks: int) -> list[Link]:
    links = []
    for number in range(1, GROUPS + 1):
        for block in range(1, blocks + 1):
            at = f"{side}.blocks.group_{number}.block_{block}"
            if block == 1 and widths[number - 1] != widths[number]:
                links += _convolution(f"{at}.id_path", f"{at}.id_path")
            for place in range(1, 5):
                links += _convolution(f"{at}.res_path.conv_{place}", f"{at}.res_path.conv_{place}")
    return links


def _blocks(published: Weights, side: str) -> int:
    number = 0
    while f"{side}.blocks.group_1.block_{number + 1}.res_path.conv_1.w" in published:
        number += 1
    return number
