"""Which places of a picture are worth a token.

Paper: Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual Tokenization (Jin et al., 2023),
arXiv:2309.04669, section 3.1, and the authors' code: half of a place's channels speak for it, the mean of the other
half over the picture tells what else there is; layers that halve in width end in the logit of keeping it. The draw is a
Gumbel-softmax over {keep, drop} (Jang et al., 2017), arXiv:1611.01144, passed straight through; of two classes that is
a sigmoid of one logit with logistic noise.

Departs from the authors' code in evaluation, where it draws too: here a picture has as many tokens as it would have on
average, at its most probable places, so that the same picture always has the same tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TokenSelector(nn.Module):
    """(B, P, C) features → decisions (B, P): 1 to keep, 0 to drop; one or more are kept of every picture.

    Args:
        width: C; a multiple of 4.
        temperature: τ of the relaxation whose gradient is passed; above 0.
    """

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.norm = nn.LayerNorm(width)
        self.mixing = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.head = nn.Sequential(
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Linear(width // 2, width // 4),
            nn.GELU(),
            nn.Linear(width // 4, 1),
        )

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits (B, P) of keeping each place; in the weights' own precision whatever the autocast."""
        with torch.autocast(features.device.type, enabled=False):
            local, shared = self.mixing(self.norm(features.to(self.norm.weight.dtype))).chunk(2, dim=2)
            return self.head(torch.cat([local, shared.mean(1, keepdim=True).expand_as(shared)], dim=2))[..., 0].float()

    def forward(self, features: Tensor) -> Tensor:
        logits = self.logits(features)
        return draw_decisions(logits, self.temperature) if self.training else expected_decisions(logits)


def draw_decisions(logits: Tensor, temperature: float) -> Tensor:
    """Return drawn decisions (B, P), 1 with probability σ(logit), with the gradient of σ((logit + noise) / τ).

    Where a picture would keep nothing, it keeps the place that came nearest.
    """
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    noisy = logits + uniform.logit()
    hard = (noisy >= noisy.detach().amax(1, keepdim=True).clamp_max(0)).to(noisy.dtype)
    relaxed = (noisy / temperature).sigmoid()
    return hard + (relaxed - relaxed.detach())


def expected_decisions(logits: Tensor) -> Tensor:
    """Return decisions (B, P) that keep the most probable places, as many as would be drawn on average, rounded."""
    count = logits.sigmoid().sum(1, keepdim=True).round().clamp_min(1)
    places = logits.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (places < count).to(logits.dtype)


def pack(tokens: Tensor, decisions: Tensor) -> tuple[Tensor, Tensor]:
    """Move the kept ones of (B, P, C) tokens to the front, in order; return them all and which are kept, (B, P)."""
    kept = decisions.detach() > 0.5
    order = (~kept).long().argsort(dim=1, stable=True)
    packed = tokens.gather(1, order[..., None].expand_as(tokens))
    return packed, torch.arange(kept.shape[1], device=kept.device) < kept.sum(1, keepdim=True)
