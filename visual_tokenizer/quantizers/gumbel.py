"""The quantizer of DALL·E's dVAE: learned logits, a relaxed draw from them in training, their argmax in use.

Papers: Zero-Shot Text-to-Image Generation (Ramesh et al., 2021), arXiv:2102.12092, section 2.1 and appendix A.2;
Categorical Reparameterization with Gumbel-Softmax (Jang et al., 2017), arXiv:1611.01144, eq. 2. The logits are a linear
map of the latents (the dVAE's last 1×1 convolution), codes are rows of an embedding (its decoder's first). Tokens ×
codes stand in memory, because each pair has its own noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.codebooks.annealing import GumbelDrawConfig, gumbel_noise
from visual_tokenizer.codebooks.search import code_counts
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig, batch_metrics


@dataclass(kw_only=True)
class GumbelConfig(GumbelDrawConfig, QuantizerConfig):
    """Fields of the dVAE's quantizer."""

    codebook_size: Annotated[int, Ge(2)] = 8192
    """Number of codes K."""

    code_dim: Annotated[int, Ge(1)] = 32
    """Channels of latents and codes."""

    kl_weight: Annotated[float, Ge(0)] = 5e-4
    """Factor on the mean over tokens of KL(softmax(logits) ‖ uniform) in nats. The dVAE's 6.6 weighs the sum over
    tokens per sub-pixel: 6.6 · N / (3HW) here."""


class Gumbel(Quantizer):
    """`softmax((Wz + b + g)/τ) E` in training, `E[argmax(Wz + b)]` in use."""

    Config = GumbelConfig
    steps: Tensor

    def __init__(self, config: GumbelConfig) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.code_dim = config.code_dim
        self.to_logits = nn.Linear(config.code_dim, config.codebook_size)
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.code_dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        config = self.config
        logits = self.to_logits(latents.reshape(-1, self.code_dim))
        losses = {}
        if self.training:
            noisy = logits + gumbel_noise(logits.shape[0], logits.shape[1], logits)
            relaxed = (noisy / config.temperature_at(self.steps)).softmax(dim=1) @ self.codebook
            indices = noisy.detach().argmax(dim=1)
            drawn = self.codebook[indices].detach()
            codes = drawn + (relaxed - relaxed.detach()) if config.hard else relaxed
            losses = config.kl_loss(logits, self.steps)
            self.steps.add_(1)
        else:
            indices = logits.argmax(dim=1)
            expected = logits.softmax(dim=1) @ self.codebook.detach()
            codes = self.codebook[indices] + (expected - expected.detach())
        return QuantizerOutput(
            codes=codes.view(latents.shape),
            indices=indices.view(latents.shape[:-1]),
            losses=losses,
            metrics=batch_metrics(code_counts(indices, self.codebook_size)),
        )

    def lookup(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.codebook)
