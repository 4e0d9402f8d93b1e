"""A temperature that falls over training, computed on the device from the step that is kept there."""

from __future__ import annotations

import math

from torch import Tensor


def cosine_annealed(start: float, end: float, over_steps: int, steps: Tensor) -> Tensor:
    """Return a float32 scalar that goes from `start` to `end` along half a cosine over `over_steps`, and stays there.

    Args:
        start: value at step 0.
        end: value from step `over_steps` on.
        over_steps: length of the way; 0 gives `end` at once.
        steps: int64 scalar; never read on the host, so that nothing waits for the device.
    """
    progress = (steps.float() / over_steps).clamp(max=1.0) if over_steps > 0 else steps.float() * 0 + 1
    return end + (start - end) * (1 + (progress * math.pi).cos()) / 2


def linear_warmup(over_steps: int, steps: Tensor) -> Tensor:
    """Return a float32 scalar that goes from 0 to 1 over `over_steps`, and stays there; 1 at once if that is 0."""
    return (steps.float() / over_steps).clamp(max=1.0) if over_steps > 0 else steps.float() * 0 + 1
