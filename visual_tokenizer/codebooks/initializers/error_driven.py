"""Error-driven initialisation: at each of the first steps, codes are set to latents that those set so far serve badly.

The survey's section 5, item 4: drawn from the top share of δ = ‖z − e_k‖², so that each step covers what is uncovered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from visual_tokenizer.codebooks.distributed import broadcast_from_first_rank
from visual_tokenizer.codebooks.initializers.base import Initializer, InitializerConfig


@dataclass(kw_only=True)
class ErrorDrivenConfig(InitializerConfig):
    """Fields of error-driven initialisation."""

    codes_per_step: Annotated[int, Ge(1)] = 64
    """Codes set at each training step, at most. Fewer look more often at what is left uncovered."""

    top_share: Annotated[float, Interval(gt=0, le=1)] = 0.25
    """Share of the step's latents, those of the largest error, that codes are drawn from."""


class ErrorDriven(Initializer):
    """`e_k ← z_i`, i drawn from the latents of the largest δ."""

    Config = ErrorDrivenConfig
    is_online = True

    def next_codes(self, latents: Tensor, errors: Tensor | None, missing: int) -> Tensor:
        pool = latents
        if errors is not None:
            kept = max(1, round(self.config.top_share * latents.shape[0]))
            pool = latents[errors.topk(kept).indices]
        count = min(missing, self.config.codes_per_step, pool.shape[0])
        return broadcast_from_first_rank(pool[torch.randperm(pool.shape[0], device=pool.device)[:count]])
