"""What a run writes while it trains: log.jsonl, plots/loss.png and samples/."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from visual_tokenizer.evaluation.plots import plot_losses, save_picture
from visual_tokenizer.runs.folder import StepLog
from visual_tokenizer.runs.random_state import random_state, restore_random_state

PLOT_EVERY_LOGS = 10


class ProgressFiles(TrainerCallback):
    """Writes `log.jsonl`, a line a log, and draws `plots/loss.png` from it; the main process only.

    Asks for a log at every checkpoint too, so that a resumed run's means are over the same steps as an unbroken run's.

    Args:
        output_dir: of the run.
        curve: name of the curve that a logged value belongs to, or None.
    """

    def __init__(self, output_dir: str, curve: Callable[[str], str | None]) -> None:
        self.folder = Path(output_dir)
        self.lines = StepLog(self.folder)
        self.curve = curve
        self._logs = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop what was logged after the checkpoint from which the run goes on."""
        if state.is_world_process_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lines.truncate(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask for a log where a checkpoint is due."""
        control.should_log |= control.should_save
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Append a line; draw now and then."""
        if state.is_world_process_zero and logs:
            self.lines.append(state.global_step, dict(logs))
            self._logs += 1
            if self._logs % PLOT_EVERY_LOGS == 0:
                self.draw()

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Draw the whole run."""
        if state.is_world_process_zero:
            self.draw()

    def draw(self) -> None:
        """Draw `plots/loss.png`."""
        entries = []
        for line in self.lines.read():
            curves = {name: value for key, value in line.items() if (name := self.curve(key)) is not None}
            if curves:
                entries.append({"step": line["step"], **curves})
        if entries:
            plot_losses(entries, self.folder / "plots" / "loss.png")


class SamplePictures(TrainerCallback):
    """Draws now and then what the model makes, into `samples/step-00000100.png`.

    Every process draws, because sharded weights need all of them; the main process writes. The generators of the
    training are put back, and its clock is stopped.

    Args:
        every_steps: 0 for none but the last.
        output_dir: of the run.
    """

    trainer: Any
    """Set by the `RunTrainer` that gets these."""

    def __init__(self, every_steps: int, output_dir: str) -> None:
        self.every_steps, self.folder = every_steps, Path(output_dir) / "samples"

    def draw(self, model: nn.Module) -> Image.Image:
        """Return the picture."""
        raise NotImplementedError

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Draw where a picture is due."""
        is_due = self.every_steps and state.global_step % self.every_steps == 0
        if model is None or not (is_due or state.global_step == state.max_steps):
            return
        with self.trainer.off_the_clock(), _generators_put_back(args.device):
            picture = self.draw(model)
        if state.is_world_process_zero:
            save_picture(picture, self.folder / f"step-{state.global_step:08d}.png")


@contextmanager
def _generators_put_back(device: torch.device) -> Iterator[None]:
    state = random_state(device)
    try:
        yield
    finally:
        restore_random_state(state, device)
