"""What a run writes while it trains: log.jsonl, plots/loss.png and samples/."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mmlm.lm_recipe import SamplingSection
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.plots import plot_losses, save_picture
from visual_tokenizer.runs.folder import StepLog
from visual_tokenizer.runs.random_state import random_state, restore_random_state

PLOT_EVERY_LOGS = 10


class LogBeforeSaving(TrainerCallback):
    """Logs at every checkpoint, so that a resumed run's means are over the same steps as an unbroken
    run's."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask for a log where a checkpoint is due."""
        control.should_log |= control.should_save
        return control


class ProgressFiles(TrainerCallback):
    """Writes `log.jsonl`, a line a log, and draws `plots/loss.png` from it; the main process only."""

    def __init__(self, output_dir: str | os.PathLike[str]) -> None:
        self.folder = Path(output_dir)
        self.lines = StepLog(self.folder)
        self._logs = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop what was logged after the checkpoint from which the run goes on."""
        if state.is_world_process_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lines.truncate(state.global_step)

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
            losses = {_curve(key): value for key, value in line.items() if is_loss(key)}
            if losses:
                entries.append({"step": line["step"], **losses})
        if entries:
            plot_losses(entries, self.folder / "plots" / "loss.png")


def is_loss(key: str) -> bool:
    """Return whether a logged value is a loss in nats a token: not the mean over the run, nor z-loss."""
    return "loss" in key and key != "train_loss" and "z_loss" not in key


def _curve(key: str) -> str:
    """`loss_image` → `loss/image`, `eval_loss_image` → `loss/heldout_image`, `eval_loss` → `loss/heldout`."""
    if key == "loss":
        return key
    name = key.replace("eval_loss", "heldout").replace("loss_", "")
    return f"loss/{name}"


class SampleGrids(TrainerCallback):
    """Draws fixed prompts now and then into `samples/step-00000100.png`.

    Every process draws, because sharded weights need all of them; the main process writes. The generators of
    the training are put back.
    """

    def __init__(
        self,
        processor: MultimodalProcessor,
        sampling: SamplingSection,
        every_steps: int,
        output_dir: str | os.PathLike[str],
    ) -> None:
        self.processor, self.sampling, self.every_steps = processor, sampling, every_steps
        self.folder = Path(output_dir) / "samples"
        self.trainer: Any = None
        """Whose clock is stopped while drawing; set after it is built."""

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        """Draw where a grid is due."""
        if not self.every_steps or state.global_step % self.every_steps or model is None:
            return
        with self.trainer.off_the_clock(), _generators_put_back(args.device):
            grid = self.draw(model)
        if state.is_world_process_zero:
            save_picture(grid, self.folder / f"step-{state.global_step:08d}.png")

    def draw(self, model: nn.Module) -> Image.Image:
        """Return the grid of all prompts."""
        from mmlm.generation.grid import image_grid
        from mmlm.generation.images import generate_images

        sampling = self.sampling
        if self.processor.codec is not None:
            torch.nn.Module.to(self.processor.codec, next(model.parameters()).device)
        language_model: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        with _whole_tables(language_model):
            pictures = generate_images(
                language_model,
                self.processor,
                sampling.prompts,
                **sampling.defaults(),
                seed=sampling.seed,
            )
        return image_grid(pictures, sampling.prompts)


@contextmanager
def _whole_tables(model: Any) -> Iterator[None]:
    """Under ZeRO-3, gather table and head, whose sizes are checked before drawing; layers gather themselves."""
    weights = {id(part.weight): part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    sharded = [weight for weight in weights.values() if hasattr(weight, "ds_id")]
    if not sharded:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(sharded):
        yield


@contextmanager
def _generators_put_back(device: torch.device) -> Iterator[None]:
    state = random_state(device)
    try:
        yield
    finally:
        restore_random_state(state, device)


def last_losses(output_dir: str | os.PathLike[str]) -> dict[str, float]:
    """Return the newest value of every loss in a run's `log.jsonl`."""
    found: dict[str, float] = {}
    for line in StepLog(Path(output_dir)).read():
        found |= {key: value for key, value in line.items() if is_loss(key)}
    return found
