"""Next-token cross-entropy, token by token, and its sums for each kind of token."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mmlm.data.pairs import IGNORED_LABEL, KINDS

LOGITS_AT_A_TIME = 2**27
"""Logits that are in float32 at one time; 512 MB."""


class DivergedError(FloatingPointError):
    """The loss is no longer a finite number."""


def shift_left(values: Tensor, fill: int) -> Tensor:
    """Move (B, L) one place to the left, so that place i holds what follows token i; the last place gets
    `fill`."""
    return F.pad(values[:, 1:], (0, 1), value=fill)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy (B, L) float32 in nats of logits (B, L, V) and targets (B, L), 0 where these
    are -100.

    Only `LOGITS_AT_A_TIME` logits are float32 at one time; they are made again in the backward pass.
    """
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    rows = max(1, LOGITS_AT_A_TIME // flat.shape[1])
    if flat.shape[0] <= rows:
        return _cross_entropy(flat, wanted).view(targets.shape)
    parts = [
        checkpoint(_cross_entropy, part, want, use_reentrant=False, preserve_rng_state=False)
        for part, want in zip(flat.split(rows), wanted.split(rows), strict=True)
    ]
    return torch.cat(parts).view(targets.shape)


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), targets, ignore_index=IGNORED_LABEL, reduction="none")


class TokenWeights:
    """The weight of each token in the loss, by its kind.

    Args:
        weights: a number of 0 or more for each of `KINDS`.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.by_kind = [float(weights[kind]) for kind in KINDS]
        self._tables: dict[torch.device, Tensor] = {}

    def __call__(self, labels: Tensor, kinds: Tensor) -> Tensor:
        """Return float32 weights of the shape of `labels`; 0 where they are -100."""
        if labels.device not in self._tables:
            self._tables[labels.device] = torch.tensor([*self.by_kind, 0.0]).to(labels.device)
        weights = self._tables[labels.device][kinds]  # kind -1 is the last entry
        return weights * (labels != IGNORED_LABEL)


class ModalityMeter:
    """Sums losses by kind on the device, without waiting for it, until they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(KINDS), dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.sums)
        self.tokens = torch.zeros((), dtype=torch.float64, device=device)
        self._since = perf_counter()
        self._paused = 0.0

    @torch.no_grad()
    def add(self, losses: Tensor, targets: Tensor, kinds: Tensor) -> None:
        """Count a batch: losses, targets and their kinds, each (B, L)."""
        trained = targets != IGNORED_LABEL
        masks = torch.stack([(kinds == kind) & trained for kind in range(len(KINDS))])
        self.sums += (losses.detach() * masks).sum((1, 2), dtype=torch.float64)
        self.counts += masks.sum((1, 2))
        self.tokens += (kinds >= 0).sum()

    def pause(self, seconds: float) -> None:
        """Leave time out of the token rate: what was spent on evaluation, samples and checkpoints."""
        self._paused += seconds

    def flush(self, accelerator: Accelerator, weights: TokenWeights) -> tuple[dict[str, float], float, float]:
        """Return the mean loss by kind in nats a token, their weighted mean, and tokens/s; over all
        processes. Then reset.

        Raises:
            DivergedError: the loss is NaN or infinite; on every process alike.
        """
        local = torch.cat([self.sums, self.counts, self.tokens[None]])
        totals = accelerator.reduce(local, reduction="sum").tolist()
        sums, counts = totals[: len(KINDS)], totals[len(KINDS) : -1]
        seconds = perf_counter() - self._since - self._paused
        self.__init__(self.sums.device)  # type: ignore[misc]
        means = {kind: total / count for kind, total, count in zip(KINDS, sums, counts, strict=True) if count}
        weight = sum(w * count for w, count in zip(weights.by_kind, counts, strict=True))
        mean = sum(w * total for w, total in zip(weights.by_kind, sums, strict=True)) / weight if weight else 0.0
        wrong = [kind for kind, value in means.items() if not abs(value) < float("inf")]
        if wrong:
            raise DivergedError(
                f"the loss of {', '.join(wrong)} tokens is not finite: lower optimizer.learning_rate or "
                "raise optimizer.warmup_steps, and start again from the last checkpoint"
            )
        return means, mean, totals[-1] / max(seconds, 1e-9)
