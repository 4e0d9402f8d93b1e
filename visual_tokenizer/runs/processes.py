"""The processes of a run: how they are joined, and work that only the first of them does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    parse_flag_from_env,
)

from visual_tokenizer.errors import FirstProcessError
from visual_tokenizer.fields.decoding import ConfigError

Result = TypeVar("Result")

_SUPPORTED = (
    "NO",
    "MULTI_CPU",
    "MULTI_GPU",
    "MULTI_XPU",
    "MULTI_NPU",
    "MULTI_MLU",
    "MULTI_HPU",
    "MULTI_MUSA",
)


def build_accelerator(**settings: Any) -> Accelerator:
    """Return an accelerator for data-parallel training; `settings` are accelerate's own.

    Without a GPU the processes of `accelerate launch` are joined through gloo, also when `--cpu` was not given.

    Raises:
        ConfigError: the launcher asks for DeepSpeed or FSDP, which shard weights that quantizers must see whole.
    """
    handlers: list[Any] = [
        # Codebooks are updated alike on every process, so sending buffers around each step would be waste.
        DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    ]
    has_device = torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    if not has_device and int(os.environ.get("LOCAL_RANK", -1)) >= 0:  # only a launcher sets it
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    accelerator = Accelerator(cpu=not has_device, kwargs_handlers=handlers, **settings)
    if accelerator.distributed_type not in {DistributedType(name) for name in _SUPPORTED}:
        raise ConfigError(
            f"a visual tokenizer is trained data-parallel (MULTI_GPU or MULTI_CPU), not with "
            f"{accelerator.distributed_type.value}; use one of recipes/accelerate"
        )
    return accelerator


def on_first_process(accelerator: Accelerator, action: Callable[[], Result]) -> Result:
    """Run `action` on the first process and return its result, plain data, on all.

    Raises:
        FirstProcessError: on the others, when `action` raised on the first.
    """
    if accelerator.num_processes == 1:
        return action()
    outcome: list[Any] = [None, None]
    failure: BaseException | None = None
    if accelerator.is_main_process:
        try:
            outcome[0] = action()
        except Exception as error:  # every kind: the others wait for word
            failure = error
            outcome[1] = f"{type(error).__name__}: {error}"
    broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    if outcome[1] is not None:
        raise FirstProcessError(outcome[1])
    return outcome[0]


def leave_process_group() -> None:
    """End the processes' connection, if there is one; a program's last act."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def leave_signals(worker: int = 0) -> None:
    """Have a loader's worker leave the signals to its process, which needs what the worker reads for its last step.

    A scheduler may send a signal to all processes of a job, and workers end at once by default.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopSignals:
    """While entered, SIGTERM and SIGINT are noted instead of ending the process; a second SIGINT ends it.

    Outside the main thread, where Python allows no handlers, nothing is noted.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in STOP_SIGNALS:
            try:
                self._previous[number] = signal.signal(number, self._note)
            except ValueError:
                break
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        self.received = number
