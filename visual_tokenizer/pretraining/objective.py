"""The loss of masked image modelling. Paper: BEiT (Bao et al., 2022), arXiv:2106.08254, section 2.3, equation 3.

Where a tokenizer has several codebooks, each has a head of its own: the rows of one linear map, `codebook_size` of them
a codebook, so that the model stays an ordinary `BeitForMaskedImageModeling`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_predictions(logits: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Pick the masked patches.

    Args:
        logits: (B, N, C · K), codebook by codebook.
        targets: (B, N, C) int64 in 0 … K−1.
        mask: (B, N) bool; M true.

    Returns:
        logits (M · C, K) float32 and targets (M · C,).
    """
    codebooks = targets.shape[-1]
    chosen = logits[mask]
    return chosen.reshape(len(chosen) * codebooks, -1).float(), targets[mask].flatten()


def masked_token_loss(outputs: Any, targets: Tensor, mask: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats over masked patches and codebooks; of two predictions, their sum.

    Args:
        outputs: of the model: `logits` (B, N, C · K) and perhaps `aggregated_logits` of the same shape.
        targets: (B, N, C) int64.
        mask: (B, N) bool.
    """
    aggregated = getattr(outputs, "aggregated_logits", None)
    both = [outputs.logits] if aggregated is None else [outputs.logits, aggregated]
    return torch.stack([F.cross_entropy(*masked_predictions(logits, targets, mask)) for logits in both]).sum()


@dataclass
class MaskedTokenMeter:
    """Sums over batches: how well masked tokens are predicted by the model's own head."""

    device: torch.device

    def __post_init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64, device="cpu" if self.device.type == "mps" else self.device)

    @torch.no_grad()
    def add(self, logits: Tensor, targets: Tensor, mask: Tensor) -> None:
        """Take in a batch; shapes as in `masked_predictions`."""
        chosen, wanted = masked_predictions(logits, targets, mask)
        loss = F.cross_entropy(chosen, wanted, reduction="sum")
        right = (chosen.argmax(-1) == wanted).sum()
        self.sums += torch.stack([loss, right, right.new_tensor(len(wanted))]).to(self.sums)

    def flush(self, accelerator: Any) -> dict[str, float]:
        """Return `masked_loss` (nats a token) and `masked_accuracy` over all processes, and begin again."""
        loss, right, count = accelerator.reduce(self.sums, reduction="sum").tolist()
        self.sums = torch.zeros_like(self.sums)
        return {"masked_loss": loss / max(count, 1), "masked_accuracy": right / max(count, 1)}
