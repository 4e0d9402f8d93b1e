"""What becomes of codes that nobody uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn

from visual_tokenizer.codebooks.distributed import broadcast_from_first_rank
from visual_tokenizer.errors import UserError
from visual_tokenizer.registry import PartConfig


@dataclass(kw_only=True)
class ReseederConfig(PartConfig, package="visual_tokenizer.codebooks.reseeders"):
    """When a code counts as dead and how often that is looked at."""

    usage_below: Annotated[float, Interval(ge=0, lt=1)] = 0.01
    """A code is dead if its running share of the assignments is below this fraction of 1/K; 0 is never."""

    unused_steps: Annotated[int, Ge(0)] = 0
    """A code is dead, too, if it was not chosen for this many steps; 0 does not look at that."""

    perplexity_below: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """No code is dead while the perplexity of the running shares is at least this fraction of K."""

    every_steps: Annotated[int, Ge(1)] = 100
    """Training steps between two looks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.usage_below == 0 and self.unused_steps == 0:
            raise UserError("usage_below and unused_steps are both 0: no code would ever be dead")


class Reseeder(nn.Module):
    """Chooses replacements for dead codes, in a number that does not depend on how many are dead.

    So nothing waits for the device to count them: dead code number i takes row i, and those beyond the rows stay.
    """

    Config: ClassVar[type[ReseederConfig]]

    def __init__(self, config: ReseederConfig, *, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        self.config: Any = config

    @torch.no_grad()
    def observe(self, latents: Tensor) -> None:
        """See the latents (M, C) of each training step."""

    @torch.no_grad()
    def replacements(
        self, latents: Tensor, errors: Tensor, codebook: Tensor, shares: Tensor, dead: Tensor
    ) -> tuple[Tensor, Tensor | int]:
        """Return new codes (R, C) in the order in which they are to be used, and how many of them are good.

        The same on every rank.

        Args:
            latents: (M, C) of this rank's batch.
            errors: (M,) squared distance of each latent to its code.
            codebook: (K, C) codes as they are.
            shares: (K,) running share of each code.
            dead: (K,) mask of the codes to be replaced.
        """
        raise NotImplementedError


def random_order(count: int, pool: Tensor | int, like: Tensor) -> Tensor:
    """Return a permutation of range(count), the same on every rank, that shuffles the first `pool` and puts them first.

    A tensor `pool` is not read on the host; `like` is a tensor on the device.
    """
    keys = broadcast_from_first_rank(torch.rand(count, device=like.device))
    return (keys + (torch.arange(count, device=like.device) >= pool)).argsort()


PART = Reseeder
