"""Averaged weights as Lightning's `LitEma` keeps them: under the weights' names without dots."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

EMA = "model_ema."


def with_averages(tensors: Mapping[str, Tensor], head: str = "") -> dict[str, Tensor]:
    """Return the weights, each replaced by its average where there is one; the averages' own entries are left out.

    Args:
        tensors: weights and, under `model_ema.`, their averages.
        head: what stands before all names.
    """
    averages = f"{head}{EMA}"
    return {
        name: tensors.get(averages + name.removeprefix(head).replace(".", ""), tensors[name])
        for name in tensors
        if not name.startswith(averages)
    }
