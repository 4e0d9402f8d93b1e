"""How much of a codebook the data uses, and how evenly."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from visual_tokenizer.errors import UserError
from visual_tokenizer.metrics.base import Metric, MetricConfig
from visual_tokenizer.outputs import ABSENT


def count_indices(indices: Tensor, codebook_size: int, num_codebooks: int = 1) -> Tensor:
    """Return how often each index occurs, (num_codebooks, codebook_size) int64.

    Args:
        indices: integers in [0, codebook_size): any shape for one codebook, (..., num_codebooks) for several.

    Raises:
        ValueError: an index is out of range, or the last dimension is not `num_codebooks`.
    """
    if num_codebooks > 1 and indices.shape[-1:] != (num_codebooks,):
        raise UserError(f"indices must end in num_codebooks = {num_codebooks}, got shape {tuple(indices.shape)}")
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise UserError(f"indices must be integers, got {indices.dtype}")
    flat = indices.detach().reshape(-1, num_codebooks).long()
    if flat.numel():
        low, high = (int(bound) for bound in torch.aminmax(flat))
        if low < 0 or high >= codebook_size:
            raise UserError(f"indices must lie in 0..{codebook_size - 1}, got {low}..{high}")
    # Codebook c counts in its own stretch [c K, (c + 1) K), so one pass serves all.
    offsets = torch.arange(num_codebooks, device=flat.device) * codebook_size
    counts = torch.bincount((flat + offsets).flatten(), minlength=num_codebooks * codebook_size)
    return counts.view(num_codebooks, codebook_size)


def codebook_statistics(counts: Tensor) -> dict[str, float]:
    """Return usage, perplexity, entropy and dead codes of (num_codebooks, codebook_size) `counts`.

    With several codebooks, `codebook_dead` is the total and the others are means over codebooks.

    Returns:
        `codebook_usage`: fraction of codes that occur at least once, in (0, 1];
        `codebook_entropy_bits`: -sum p log2 p, in [0, log2 codebook_size];
        `codebook_perplexity`: 2^entropy, in [1, codebook_size];
        `codebook_dead`: codes that never occur;
        `codebook_tokens`: indices counted.
    """
    counts = counts.double()
    shares = counts / counts.sum(1, keepdim=True)
    entropy = torch.special.entr(shares).sum(1) / math.log(2)
    return {
        "codebook_usage": (counts > 0).double().mean().item(),
        "codebook_entropy_bits": entropy.mean().item(),
        "codebook_perplexity": torch.exp2(entropy).mean().item(),
        "codebook_dead": float((counts == 0).sum()),
        "codebook_tokens": counts.sum().item(),
    }


@dataclass(kw_only=True)
class CodebookUsageConfig(MetricConfig):
    """Configures the usage of a codebook."""

    codebook_size: Annotated[int, Ge(1)] | None = None
    """Number of codes K; null: the tokenizer's."""
    num_codebooks: Annotated[int, Ge(1)] | None = None
    """How many indices a position has; null: the tokenizer's."""

    def for_codebook(self, codebook_size: int, num_codebooks: int) -> CodebookUsageConfig:
        """Return the config with the tokenizer's numbers where it has none."""
        return replace(
            self,
            codebook_size=self.codebook_size or codebook_size,
            num_codebooks=self.num_codebooks or num_codebooks,
        )


class CodebookUsage(Metric):
    """Share of codes used, entropy, perplexity and dead codes, exact at any codebook size.

    Usage depends on how much data was seen: report `codebook_tokens` beside it.

    Raises:
        ValueError: the config does not say `codebook_size`.
    """

    Config = CodebookUsageConfig
    unprotocolled = ("codebook_size", "num_codebooks")  # they are the tokenizer's

    def __init__(self, config: CodebookUsageConfig) -> None:
        if config.codebook_size is None:
            raise UserError("codebook_size must be 1 or more where no tokenizer gives it, got null")
        self.codebook_size, self.num_codebooks = config.codebook_size, config.num_codebooks or 1
        counts = torch.zeros(self.num_codebooks, self.codebook_size, dtype=torch.int64)
        super().__init__(config, {"counts": counts})

    def observe(self, pixels: Tensor, reconstruction: Tensor, indices: Tensor) -> None:
        """Count the indices but `ABSENT` ones; see the base class."""
        rows = indices.reshape(-1, self.num_codebooks)
        self.update(rows[rows[:, 0] != ABSENT])

    def update(self, indices: Tensor) -> None:
        """Count `indices`: integers of any shape, or (..., num_codebooks) with several codebooks."""
        self.add(counts=count_indices(indices, self.codebook_size, self.num_codebooks))

    def compute(self) -> dict[str, float]:
        """Return `codebook_statistics` over all processes; see the base class."""
        counts = self.reduced_sums()["counts"]
        if not counts.any():
            raise UserError("codebook_usage: compute was called, but no process saw an index")
        return codebook_statistics(counts)
