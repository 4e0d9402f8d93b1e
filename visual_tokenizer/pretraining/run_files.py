"""What a run writes while it trains: log.jsonl, plots/loss.png and samples/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from visual_tokenizer.plots import plot_losses, save_picture
from visual_tokenizer.pretraining.masked_pictures import grid_of_rows, prediction_rows
from visual_tokenizer.pretraining.targets import TokenTargets
from visual_tokenizer.runs.folder import StepLog

CURVES = {"loss": "loss", "masked_loss": "loss/masked", "eval_masked_loss": "loss/masked, held out"}
"""What is drawn of a line of the log, by the curve's name."""


class RunFiles(TrainerCallback):
    """Writes a line a log and draws the curves at the end; logs at every checkpoint.

    The latter so that a resumed run's means are over the same steps as an unbroken run's.
    """

    def __init__(self, output_dir: str) -> None:
        self.folder = Path(output_dir)
        self.lines = StepLog(self.folder)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop what was logged after the checkpoint from which the run goes on."""
        if state.is_world_process_zero:
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
        """Append a line."""
        if state.is_world_process_zero and logs:
            self.lines.append(state.global_step, {name: value for name, value in logs.items() if name != "epoch"})

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Draw the whole run."""
        entries = [
            {"step": line["step"], **{CURVES[name]: value for name, value in line.items() if name in CURVES}}
            for line in self.lines.read()
        ]
        if state.is_world_process_zero and any(len(entry) > 1 for entry in entries):
            plot_losses(entries, self.folder / "plots" / "loss.png")


class PredictedSamples(TrainerCallback):
    """Draws predictions of fixed held-out pictures now and then into `samples/step-00000100.png`.

    Every process predicts, because sharded weights need all of them; the main process writes.

    Args:
        targets: the frozen tokenizer.
        pixels: (B, 3, H, W) in [-1, 1].
        mask: (B, N).
        grid: patches of a column and of a row.
        every_steps: 0 for the end of the run only.
        output_dir: of the run.
    """

    def __init__(
        self,
        targets: TokenTargets,
        pixels: Tensor,
        mask: Tensor,
        grid: tuple[int, int],
        every_steps: int,
        output_dir: str,
    ) -> None:
        self.targets, self.pixels, self.mask, self.grid = targets, pixels, mask, grid
        self.every_steps, self.folder = every_steps, Path(output_dir) / "samples"

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Draw where a grid is due."""
        is_due = self.every_steps and state.global_step % self.every_steps == 0
        if model is None or not (is_due or state.global_step == state.max_steps):
            return
        device = torch.device(args.device)
        pixels, mask = self.pixels.to(device), self.mask.to(device)
        grid = grid_of_rows(prediction_rows(model, self.targets, pixels, mask, self.grid))
        if state.is_world_process_zero:
            save_picture(grid, self.folder / f"step-{state.global_step:08d}.png")
