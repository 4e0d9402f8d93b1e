"""What each token weighs in the loss, and sums of losses for each kind of token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor

from mmlm.losses.cross_entropy import IGNORED_LABEL, TokenLosses
from mmlm.vocabulary import KINDS
from visual_tokenizer.errors import DivergedError


def shift_left(values: Tensor, fill: int) -> Tensor:
    """Move (B, L) one place to the left, so that place i holds what follows token i; the last place gets `fill`."""
    return F.pad(values[:, 1:], (0, 1), value=fill)


class TokenWeights:
    """The weight of each token in the loss, by its kind: a number of 0 or more for each of `KINDS`."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.by_kind = [float(weights[kind]) for kind in KINDS]
        self._tables: dict[torch.device, Tensor] = {}

    def __call__(self, labels: Tensor, kinds: Tensor) -> Tensor:
        """Return float32 weights of the shape of `labels`; 0 where they are -100."""
        if labels.device not in self._tables:
            self._tables[labels.device] = torch.tensor([*self.by_kind, 0.0]).to(labels.device)
        weights = self._tables[labels.device][kinds]  # kind -1 is the last entry
        return weights * (labels != IGNORED_LABEL)


@dataclass
class MeterReading:
    """Of all processes since the last reading."""

    means: dict[str, float]
    """Mean loss by kind, nats a token."""
    mean: float
    """Their weighted mean."""
    squared_normalizer: float
    """Mean squared log normalizer of the trained tokens, of which z-loss is a multiple."""
    tokens_per_second: float
    """Without padding."""
    pairs_per_second: float
    """Of a token and one that it attends to."""
    output_norms: dict[str, float]
    """Mean norm of the last layer's output by the kind of token that it predicts, where norms were counted."""


class ModalityMeter:
    """Sums losses by kind on the device, without waiting for it, until they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(KINDS), dtype=torch.float64, device=device)
        self.counts = torch.zeros_like(self.sums)
        self.norms = torch.zeros_like(self.sums)
        self.others = torch.zeros(3, dtype=torch.float64, device=device)
        """Squared log normalizers, tokens, and pairs of tokens of which one attends to the other."""
        self._since = perf_counter()
        self._paused = 0.0

    @torch.no_grad()
    def add(
        self,
        found: TokenLosses,
        targets: Tensor,
        kinds: Tensor,
        positions: Tensor | None = None,
        norms: Tensor | None = None,
    ) -> None:
        """Count a batch: losses (B · L,), targets and their kinds (B, L), places in their documents (B, L) or None for
        rows of one document, and norms of the last layer's outputs, B · L of them in any shape."""
        trained = targets != IGNORED_LABEL
        masks = torch.stack([(kinds == kind) & trained for kind in range(len(KINDS))])
        self.sums += (found.losses.view(targets.shape) * masks).sum((1, 2), dtype=torch.float64)
        self.counts += masks.sum((1, 2))
        if norms is not None:
            self.norms += (norms.view(targets.shape) * masks).sum((1, 2), dtype=torch.float64)
        is_token = kinds >= 0
        if positions is None:
            positions = torch.arange(targets.shape[1], device=targets.device)
        squares = found.log_normalizers.square().sum(dtype=torch.float64)
        self.others += torch.stack([squares, is_token.sum(), ((positions + 1) * is_token).sum()])

    def pause(self, seconds: float) -> None:
        """Leave time out of the token rate: what was spent on evaluation, samples and checkpoints."""
        self._paused += seconds

    def flush(self, accelerator: Accelerator, weights: TokenWeights) -> MeterReading:
        """Return what was counted, over all processes, and begin anew.

        Raises:
            DivergedError: the loss is NaN or infinite; on every process alike.
        """
        local = torch.cat([self.sums, self.counts, self.norms, self.others])
        totals = accelerator.reduce(local, reduction="sum").tolist()
        sums, counts, norms = (totals[part * len(KINDS) : (part + 1) * len(KINDS)] for part in range(3))
        squares, tokens, pairs = totals[3 * len(KINDS) :]
        seconds = max(perf_counter() - self._since - self._paused, 1e-9)
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
        output_norms = {kind: norm / count for kind, norm, count in zip(KINDS, norms, counts, strict=True) if norm}
        squared = squares / max(sum(counts), 1)
        return MeterReading(means, mean, squared, tokens / seconds, pairs / seconds, output_norms)
