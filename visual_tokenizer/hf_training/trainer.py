"""RunTrainer: transformers' Trainer with complete checkpoints, a clean stop and the files of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from visual_tokenizer.errors import DivergedError, Interrupted, UserError
from visual_tokenizer.hf_training.checkpoints import checkpoint_folder, complete_checkpoint
from visual_tokenizer.hf_training.log_files import ProgressFiles, SamplePictures
from visual_tokenizer.hf_training.stopping import StopAtStep
from visual_tokenizer.runs.files import discard

EVALUATION_PREFIX = "eval_"


class RunTrainer(Trainer):
    """What the trainings have in common; a subclass says what its loss is and what is measured beside it.

    Args:
        model: what is trained.
        args: of `training_arguments`.
        keep_checkpoints: complete checkpoints that are kept.
        samples: drawn now and then.
        callbacks: asked after what stops the run, and before what it writes.
        **kwargs: as of `Trainer`.

    Raises:
        UserError: one process sees several GPUs, which transformers would use by `DataParallel`.
    """

    module: str
    """The program, as it is launched."""
    curve: Callable[[str], str | None]
    """Name of the curve in plots/loss.png that a logged value belongs to; None: it is not drawn."""

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        keep_checkpoints: int,
        samples: SamplePictures,
        callbacks: Sequence[TrainerCallback] = (),
        **kwargs: Any,
    ) -> None:
        if args.n_gpu > 1:
            raise UserError(
                f"one process sees {args.n_gpu} GPUs: start one process a GPU, `accelerate launch --multi_gpu "
                f"--num_processes {args.n_gpu} -m {self.module} …`, or show it one by CUDA_VISIBLE_DEVICES"
            )
        self.stop = StopAtStep()
        files = ProgressFiles(str(args.output_dir), self.curve)
        every: list[Any] = [self.stop, *callbacks, files, samples]
        super().__init__(model=model, args=args, callbacks=every, **kwargs)
        samples.trainer = self
        self.keep_checkpoints = keep_checkpoints

    def measured(self, prefix: str) -> dict[str, float]:
        """Return what was measured since the last log; `prefix` stands before the names of the held-out set's."""
        raise NotImplementedError

    def checkpoint_facts(self, folder: Path) -> dict[str, Any]:
        """Return what the manifest of a new checkpoint says of how it was written."""
        return {}

    def off_the_clock(self) -> AbstractContextManager[None]:
        """Leave what happens inside out of what is measured of speed."""
        return nullcontext()

    def train(self, resume_from_checkpoint: Path | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Train as usual, until the end or a signal.

        Raises:
            Interrupted: SIGTERM or SIGINT; a checkpoint was written.
        """
        with self.stop.signals:
            checkpoint = None if resume_from_checkpoint is None else str(resume_from_checkpoint)
            found = super().train(checkpoint, **kwargs)
        if self.stop.stopped_by:
            raise Interrupted(self.stop.stopped_by, self.state.global_step)
        return found

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Tensor | int | None]:
        """Return the parts of one optimizer step as usual, and share the signals that have come."""
        batches, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches and self.args.world_size > 1:
            self.sum_over_processes(torch.zeros(0), device)
        return batches, count

    def sum_over_processes(self, values: Tensor, device: torch.device) -> Tensor:
        """Return the sums of a vector's elements over the processes, which learn of each other's signals thereby."""
        local = torch.cat([values, torch.tensor(self.stop.shared.flags(), device=values.device)]).to(device)
        total: Any = self.accelerator.reduce(local, reduction="sum")
        self.stop.shared.remember(total[len(values) :])
        return total[: len(values)]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was measured, then log as usual.

        Raises:
            DivergedError: the loss is not finite.
        """
        prefix = EVALUATION_PREFIX if any(key.startswith(EVALUATION_PREFIX) for key in logs) else ""
        if prefix or "loss" in logs:
            logs |= self.measured(prefix)
            if not math.isfinite(logs[f"{prefix}loss"]):
                raise DivergedError(
                    f"the loss is not finite at step {self.state.global_step}: lower optimizer.learning_rate or raise "
                    "optimizer.warmup_steps, and start again from the last checkpoint"
                )
        super().log(logs, start_time)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, mark it as complete once all processes have written, and remove old ones."""
        folder = checkpoint_folder(Path(str(self.args.output_dir)), self.state.global_step)
        with self.off_the_clock():
            if self.args.should_save and folder.exists():  # what an interrupted run left
                discard(folder)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                complete_checkpoint(folder, self.keep_checkpoints, **self.checkpoint_facts(folder))
            self.accelerator.wait_for_everyone()
