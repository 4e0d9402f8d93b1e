"""Pixels by way of another tokenizer's codes, as TiTok is trained in two stages.

Paper: An Image is Worth 32 Tokens for Reconstruction and Generation (Yu et al., 2024), arXiv:2406.07550, section 3.3.
Each position of a grid says how probable each code of a proxy tokenizer is. In stage 1 the loss `proxy_codes` compares
that with the proxy's own indices; in stage 2 the codes, mixed by these probabilities, go through the proxy's decoder,
which is trained with the rest. As in the authors' code two layers with tanh between give the logits. To be the
`patches` of a one-dimensional decoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from visual_tokenizer.decoders.base import Decoder, DecoderConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.convolution import map_from_tokens, tokens_from_map


@dataclass(kw_only=True)
class ProxyCodesConfig(DecoderConfig):
    """Fields of the decoder by proxy; the defaults are TiTok-S's with MaskGIT's VQGAN."""

    width: Annotated[int, Ge(1)] = 512
    """Channels of what enters."""

    codebook_size: Annotated[int, Ge(2)] = 1024
    """Codes of the proxy."""

    proxy: DecoderConfig = field(default_factory=lambda: DecoderConfig.family.config({"type": "cnn"}))
    """The proxy's decoder section."""

    trained: bool = False
    """Whether the proxy's codes and decoder learn: no in stage 1, yes in stage 2."""


class ProxyCodes(Decoder):
    """`forward` gives logits (B, K, h, w) over the proxy's codes; `pixels` decodes their expectation."""

    Config = ProxyCodesConfig

    def __init__(self, config: ProxyCodesConfig, *, image_size: int) -> None:
        super().__init__(config, image_size=image_size)
        self.width = config.width
        self.head = nn.Sequential(
            nn.Linear(config.width, 2 * config.width), nn.Tanh(), nn.Linear(2 * config.width, config.codebook_size)
        )
        self.proxy: Decoder = DecoderConfig.family.build(config.proxy, image_size=image_size)
        self.codes = nn.Parameter(torch.randn(config.codebook_size, self.proxy.width))
        for parameter in (self.codes, *self.proxy.parameters()):
            parameter.requires_grad_(config.trained)

    @torch.no_grad()
    def copy_proxy(self, codes: Tensor, decoder: Decoder) -> None:
        """Take over a proxy's weights.

        Args:
            codes: (K, C) all its codes in the order of their indices, mapped to the width of its decoder.
            decoder: its decoder, of the section `proxy`.

        Raises:
            ValueError: another number of codes or channels.
        """
        if codes.shape != self.codes.shape:
            raise UserError(f"the proxy's codes must be {tuple(self.codes.shape)}, got {tuple(codes.shape)}")
        self.codes.copy_(codes)
        self.proxy.load_state_dict(decoder.state_dict())

    @property
    def last_layer(self) -> nn.Parameter:
        return self.proxy.last_layer if self.config.trained else self.get_parameter("head.2.weight")

    def forward(self, latents: Tensor, grid: tuple[int, ...]) -> Tensor:
        return map_from_tokens(self.head(latents), grid)

    def pixels(self, output: Tensor) -> Tensor:
        """Return what the proxy makes of softmax(logits) @ codes: (B, K, h, w) → (B, 3, H, W)."""
        probabilities = tokens_from_map(output).softmax(dim=2)
        mixed = probabilities @ self.codes.to(probabilities.dtype)
        return self.proxy.pixels(self.proxy(mixed, tuple(output.shape[2:])))
