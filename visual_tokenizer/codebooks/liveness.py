"""Which codes are in use: running shares and ages, and the tests by which a code counts as dead."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Liveness(nn.Module):
    """Running usage of each of K = `codebook_size` codes, over all ranks.

    `decay`, in [0, 1), is the weight of the past in the running shares.
    """

    shares: Tensor
    ages: Tensor

    def __init__(self, codebook_size: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        # (K,) running share of the assignments, and training steps since the code was last chosen.
        self.register_buffer("shares", torch.full((codebook_size,), 1 / codebook_size))
        self.register_buffer("ages", torch.zeros(codebook_size, dtype=torch.int64))

    @torch.no_grad()
    def observe(self, counts: Tensor) -> None:
        """Take one step's counts (K,) of all ranks into account; a step without tokens changes nothing."""
        total = counts.sum()
        step = torch.where(total > 0, 1 - self.decay, torch.zeros_like(total))
        self.shares.lerp_(counts / total.clamp_min(1), step)
        self.ages.add_((total > 0).long()).masked_fill_(counts > 0, 0)

    def perplexity(self) -> Tensor:
        """Return exp of the entropy of the running shares: how many codes are in use, as a scalar in [1, K]."""
        shares = self.shares / self.shares.sum()
        return torch.special.entr(shares).sum().exp()

    def dead(self, usage_below: float, unused_steps: int, perplexity_below: float) -> Tensor:
        """Return a (K,) mask of the codes that count as dead.

        Args:
            usage_below: running share below this fraction of 1/K; 0 switches the test off.
            unused_steps: not chosen for this many steps; 0 switches the test off.
            perplexity_below: none is dead while the perplexity is at least this fraction of K; 1 switches that off.
        """
        size = self.shares.shape[0]
        dead = self.shares < usage_below / size
        if unused_steps > 0:
            dead = dead | (self.ages >= unused_steps)
        if perplexity_below < 1:
            dead = dead & (self.perplexity() < perplexity_below * size)
        return dead

    @torch.no_grad()
    def revive(self, rows: Tensor) -> None:
        """Take the codes of the (K,) mask for new: average share, age 0."""
        self.shares.masked_fill_(rows, 1 / self.shares.shape[0])
        self.ages.masked_fill_(rows, 0)
