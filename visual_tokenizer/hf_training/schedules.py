"""transformers' schedules of the learning rate that end above zero, and what they call their end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENDING = {
    "cosine": ("cosine_with_min_lr", "min_lr_rate"),
    "cosine_with_min_lr": ("cosine_with_min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("cosine_warmup_with_min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("warmup_stable_decay", "min_lr_ratio"),
}
"""A recipe's schedule → transformers' name where `min_learning_rate_ratio` is given, and of that argument."""


def schedule_arguments(schedule: str, ratio: float, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's schedule as transformers' arguments.

    Args:
        schedule: a name of transformers.
        ratio: where it ends, as a share of the peak; of no meaning to schedules that are not in `ENDING`.
        options: further arguments of the schedule.
    """
    options = dict(options)
    if schedule in ENDING and "min_lr" not in options:
        schedule, name = ENDING[schedule]
        options[name] = ratio
    return {"lr_scheduler_type": schedule, "lr_scheduler_kwargs": options}
