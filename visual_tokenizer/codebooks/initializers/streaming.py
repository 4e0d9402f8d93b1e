"""Streaming initialisation: codes are set from the latents of the first training steps, some at each step.

The survey's online bootstrapping (section 5, item 3); each new code is a latent of the step, with noise that tells
copies of one latent apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from visual_tokenizer.codebooks.distributed import broadcast_from_first_rank
from visual_tokenizer.codebooks.initializers.base import Initializer, InitializerConfig


@dataclass(kw_only=True)
class StreamingConfig(InitializerConfig):
    """Fields of streaming initialisation."""

    codes_per_step: Annotated[int, Ge(1)] = 256
    """Codes set at each training step, at most."""

    noise: Annotated[float, Ge(0)] = 0.01
    """Standard deviation σ of the noise on a new code, as a fraction of the latents' own."""


class Streaming(Initializer):
    """`e_k ← z_j + σε`, j drawn from the step."""

    Config = StreamingConfig
    is_online = True

    def next_codes(self, latents: Tensor, errors: Tensor | None, missing: int) -> Tensor:
        count = min(missing, self.config.codes_per_step, latents.shape[0])
        chosen = latents[torch.randperm(latents.shape[0], device=latents.device)[:count]]
        scale = self.config.noise * latents.std(dim=0, unbiased=False)
        return broadcast_from_first_rank(chosen + scale * torch.randn_like(chosen))
