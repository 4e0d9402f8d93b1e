"""SIGTERM and SIGINT end a training at a step boundary, after a checkpoint, on all processes at the same step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from visual_tokenizer.runs.processes import STOP_SIGNALS, StopSignals, leave_signals


class SharedSignals:
    """What signals any process has received, counted in a sum over the processes that a step makes anyway.

    The sum is copied to the host behind the device's back: nothing waits for work that came after it.
    """

    def __init__(self, signals: StopSignals) -> None:
        self.signals = signals
        self._host: Tensor | None = None
        self._copied: Any = None

    def flags(self) -> list[float]:
        """Return, for each of `STOP_SIGNALS`, 1 if this process has received it."""
        return [float(self.signals.received == number) for number in STOP_SIGNALS]

    def remember(self, counts: Tensor) -> None:
        """Take the sums of `flags` over all processes, (2,)."""
        if counts.device.type == "cpu":
            self._host = counts
            return
        if self._host is None:
            self._host = torch.empty(len(STOP_SIGNALS), pin_memory=True)
            self._copied = torch.Event(counts.device.type)
        self._host.copy_(counts, non_blocking=True)
        self._copied.record()

    def agreed(self) -> int:
        """Return the number of a signal that all processes know of; 0: none."""
        if self._copied is not None:
            self._copied.synchronize()
        counts = [0.0] * len(STOP_SIGNALS) if self._host is None else self._host.tolist()
        return next((int(number) for number, count in zip(STOP_SIGNALS, counts, strict=True) if count), 0)


class StopAtStep(TrainerCallback):
    """Asks for a checkpoint and the end of the training once a signal is known to all processes.

    One process stops after the step in which the signal came; several learn of it at the beginning of the next one and
    stop after that. A signal after the last step changes nothing.
    """

    def __init__(self) -> None:
        self.signals = StopSignals()
        self.shared = SharedSignals(self.signals)
        self.stopped_by = 0
        """The signal that ended the training; 0: none did."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Stop where it was agreed."""
        number = self.signals.received if args.world_size == 1 else self.shared.agreed()
        if number and state.global_step < state.max_steps:
            self.stopped_by = number
            control.should_save = control.should_training_stop = True
        return control


def let_workers_live(loader: Any) -> None:
    """Have a loader's workers leave the signals to their process, whatever else they do when they begin."""
    loader.worker_init_fn = functools.partial(_begin_worker, loader.worker_init_fn)


def _begin_worker(begin: Callable[[int], None] | None, worker: int) -> None:
    leave_signals()
    if begin is not None:
        begin(worker)
