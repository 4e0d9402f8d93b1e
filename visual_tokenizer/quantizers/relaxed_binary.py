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
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from visual_tokenizer.codebooks.packing import pack_signs
from visual_tokenizer.codebooks.usage import usage_metrics
from visual_tokenizer.errors import UserError
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers._signs import SignConfig, SignQuantizer


@dataclass(kw_only=True)
class RelaxedBinaryConfig(SignConfig):
    """Fields of relaxed binary quantization."""

    relaxation: Literal["tanh", "sigmoid"] = "tanh"
    """Soft sign of training: tanh(z/τ), or 2σ(z/τ) − 1 with half its slope at 0."""

    temperature: Annotated[float, Gt(0)] = 1.0
    """τ at the first step, in units of the latents."""

    final_temperature: Annotated[float, Gt(0)] = 0.1
    """τ from step `anneal_steps` on; not above `temperature`."""

    anneal_steps: Annotated[int, Ge(1)] = 10000
    """Training steps in which τ falls, by the same factor each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.final_temperature > self.temperature:
            raise UserError(
                f"final_temperature must be at most temperature ({self.temperature}), got {self.final_temperature}"
            )


class RelaxedBinary(SignQuantizer):
    """Codes in (−1, 1)^d in training, in {−1, +1}^d in use; no codebook, no losses."""

    Config = RelaxedBinaryConfig
    steps: Tensor

    def __init__(self, config: RelaxedBinaryConfig) -> None:
        super().__init__(config)
        # Part of the checkpoint, so that a resumed run goes on at its temperature.
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

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
