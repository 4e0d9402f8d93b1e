"""Relaxed binary quantization: soft signs in training that harden as the temperature falls, hard signs in use.

Paper: HashNet: Deep Learning to Hash by Continuation (Cao et al., 2017), arXiv:1702.00758, section 3.2: tanh(z/τ) tends
to sgn(z) as τ → 0, and is differentiable all the way. Departs from it in the schedule, which is geometric from step to
step and ends at a given temperature, where the paper lowers τ in stages, and in `sigmoid`: 2σ(z/τ) − 1, which is
tanh at twice the temperature. There is no straight-through estimator: what the decoder sees in training are the soft
codes, so that it meets hard ones first in eval mode. The metric `relaxation_gap` is their distance. A latent of exactly
0 has the sign −1, as in LFQ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from visual_tokenizer.codebooks.packing import BitOrder, bit_places, bits_of, pack_signs, unpack_signs
from visual_tokenizer.codebooks.usage import usage_metrics
from visual_tokenizer.errors import UserError
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig


@dataclass(kw_only=True)
class RelaxedBinaryConfig(QuantizerConfig):
    """Fields of relaxed binary quantization."""

    codebook_size: int = 8192
    """Number of codes K, a power of two from 2 to 2^62; a code has log2 K channels."""

    index_order: BitOrder = "most_significant_first"
    """Whether the first channel is the index's most or least significant bit."""

    relaxation: Literal["tanh", "sigmoid"] = "tanh"
    """Soft sign of training: tanh(z/τ), or 2σ(z/τ) − 1 with half its slope at 0."""

    temperature: float = 1.0
    """τ at the first step, in units of the latents; above 0."""

    final_temperature: float = 0.1
    """τ from step `anneal_steps` on; above 0, and not above `temperature`."""

    anneal_steps: int = 10000
    """Training steps in which τ falls, by the same factor each; 1 or more."""

    def __post_init__(self) -> None:
        bits_of(self.codebook_size)
        if not self.temperature > 0:
            raise UserError(f"temperature must be above 0, got {self.temperature}")
        if not 0 < self.final_temperature <= self.temperature:
            raise UserError(
                f"final_temperature must be above 0 and not above temperature ({self.temperature}), "
                f"got {self.final_temperature}"
            )
        if self.anneal_steps < 1:
            raise UserError(f"anneal_steps must be 1 or more, got {self.anneal_steps}")


class RelaxedBinary(Quantizer):
    """Codes in (−1, 1)^d in training, in {−1, +1}^d in use; no codebook, no losses."""

    Config = RelaxedBinaryConfig
    places: Tensor
    steps: Tensor

    def __init__(self, config: RelaxedBinaryConfig) -> None:
        super().__init__(config)
        self.codebook_size = config.codebook_size
        self.code_dim = bits_of(config.codebook_size)
        self.register_derived_buffers()
        # Part of the checkpoint, so that a resumed run goes on at its temperature.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def derived_buffers(self) -> dict[str, Tensor]:
        return {"places": bit_places(bits_of(self.config.codebook_size), self.config.index_order)}

    def current_temperature(self) -> Tensor:
        """Return τ after `steps` training steps, a scalar on the device."""
        share = (self.steps / self.config.anneal_steps).clamp(max=1)
        return self.config.temperature * (self.config.final_temperature / self.config.temperature) ** share

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        is_positive = latents.detach() > 0
        signs = is_positive.float() * 2 - 1
        indices = pack_signs(is_positive, self.places)
        output = QuantizerOutput(codes=signs, indices=indices, metrics=usage_metrics(indices, self.codebook_size))
        if self.training:
            temperature = self.current_temperature()
            scaled = latents / temperature
            output.codes = torch.tanh(scaled if self.config.relaxation == "tanh" else scaled / 2)
            gaps = (output.codes.detach() - signs).abs()
            output.metrics |= {
                "temperature": temperature,
                "relaxation_gap": gaps.sum() / max(1, gaps.numel()),
            }
            self.steps.add_(1)
        return output

    def lookup(self, indices: Tensor) -> Tensor:
        return unpack_signs(indices, self.places)
