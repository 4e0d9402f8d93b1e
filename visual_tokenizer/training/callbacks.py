"""What a training run does beside training: log, evaluate, draw, save. Every process calls every callback."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from visual_tokenizer.errors import DivergedError
from visual_tokenizer.evaluation.diagnosis import findings, rank_distance, running_values
from visual_tokenizer.evaluation.plots import plot_codebook, plot_health, plot_losses, reconstruction_grid, save_picture
from visual_tokenizer.evaluation.reconstruction import evaluate_reconstruction, reconstruct

if TYPE_CHECKING:
    from visual_tokenizer.training.trainer import TokenizerTrainer

EVALUATION_METRICS = ("psnr", "ssim")


class MeanMeter:
    """Sums of scalars on their device, so that adding does not wait for it."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one value to each mean."""
        for name, value in values.items():
            value = value.detach().double()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all processes, which must have added the same names, and forget what was added."""
        names = sorted(self.sums)
        if not names:
            return {}
        means = torch.stack([self.sums[name] / self.counts[name] for name in names])
        means = accelerator.reduce(means, reduction="mean")
        self.sums, self.counts = {}, {}
        return dict(zip(names, means.tolist(), strict=True))


class Callback:
    """Something that happens beside training."""

    def on_start(self, trainer: TokenizerTrainer) -> None:
        """Called before the first step."""

    def on_step(self, trainer: TokenizerTrainer) -> None:
        """Called after each step; `trainer.step` steps are done."""

    def on_end(self) -> None:
        """Called when the run ends, also by an error."""


class Logging(Callback):
    """log.jsonl, the trackers, and one bar (or plain lines, where the output is not a terminal)."""

    def on_start(self, trainer: TokenizerTrainer) -> None:
        self.since, self.last_step = time.perf_counter(), trainer.step
        is_terminal = trainer.accelerator.is_main_process and sys.stderr.isatty()
        total = trainer.recipe.training.max_steps
        self.bar = tqdm(total=total, initial=trainer.step, unit="step", disable=not is_terminal, dynamic_ncols=True)

    def on_step(self, trainer: TokenizerTrainer) -> None:
        self.bar.update()
        if not trainer.is_due(trainer.recipe.training.log_every_steps):
            return
        values = trainer.meter.means(trainer.accelerator)
        now = time.perf_counter()
        steps = trainer.step - self.last_step
        pictures_per_second = steps * trainer.recipe.training.batch_size / (now - self.since)
        self.since, self.last_step = now, trainer.step
        is_finite = math.isfinite(values["loss"]) and math.isfinite(values.get("loss/discriminator", 0.0))
        if trainer.accelerator.scaler is None:
            is_finite &= all(math.isfinite(value) for name, value in values.items() if name.endswith("gradient_norm"))
        if not is_finite:
            raise DivergedError(
                f"at step {trainer.step} the loss is {values['loss']} and the gradient norm {values['gradient_norm']}"
                f"{_other_side(values)}. "
                "The newest checkpoint is from before: start again from it with a lower optimizer.learning_rate, more "
                "optimizer.warmup_steps or without training.mixed_precision."
            )
        values |= {"learning_rate": trainer.rate, "images_per_second": round(pictures_per_second, 2)}
        trainer.record(values)
        remaining = (trainer.recipe.training.max_steps - trainer.step) * trainer.recipe.training.batch_size
        self.bar.set_postfix_str(f"loss {values['loss']:.4g}, {pictures_per_second:.4g} images/s")
        if self.bar.disable:
            trainer.say(
                f"step {trainer.step}/{trainer.recipe.training.max_steps}  loss {values['loss']:.4g}  "
                f"{pictures_per_second:.4g} images/s  {_clock(remaining / pictures_per_second)} to go"
            )

    def on_end(self) -> None:
        if hasattr(self, "bar"):
            self.bar.close()


def _other_side(values: dict[str, float]) -> str:
    if "loss/discriminator" not in values:
        return ""
    norm = values["discriminator/gradient_norm"]
    return f"; the discriminator's are {values['loss/discriminator']} and {norm}"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class HeldoutEvaluation(Callback):
    """PSNR, SSIM and codebook usage on the held-out pictures, in log.jsonl as `heldout/…`."""

    def on_start(self, trainer: TokenizerTrainer) -> None:
        self.pictures = trainer.heldout_pictures(
            trainer.recipe.training.max_evaluation_pictures,
            process=trainer.accelerator.process_index,
            processes=trainer.accelerator.num_processes,
        )

    def on_step(self, trainer: TokenizerTrainer) -> None:
        if not trainer.is_due(trainer.recipe.training.evaluate_every_steps):
            return
        batches = self.pictures.batches(trainer.share.size)
        device = trainer.accelerator.device
        results = evaluate_reconstruction(trainer.exported, batches, EVALUATION_METRICS, device)
        trainer.record({f"heldout/{name}": value for name, value in results.items()})
        quality = f"{results['psnr_db']:.2f} dB PSNR, {results['ssim']:.3f} SSIM"
        trainer.say(f"step {trainer.step}  held out: {quality}")


class Samples(Callback):
    """Grids of the same held-out pictures and the curves so far, by the first process."""

    def on_start(self, trainer: TokenizerTrainer) -> None:
        self.pixels: Tensor | None = None

    def on_step(self, trainer: TokenizerTrainer) -> None:
        is_due = trainer.is_due(trainer.recipe.training.sample_every_steps)
        if not (is_due and trainer.accelerator.is_main_process):
            return
        if self.pixels is None:
            count = trainer.recipe.training.sample_pictures
            pictures = trainer.heldout_pictures(count)
            self.pixels = next(pictures.batches(count))["pixels"].to(trainer.accelerator.device)
        tokenizer = trainer.exported
        was_training = tokenizer.training
        _, reconstruction = reconstruct(tokenizer.eval(), self.pixels)
        tokenizer.train(was_training)
        grid = reconstruction_grid(self.pixels, reconstruction)
        save_picture(grid, trainer.folder / "samples" / f"step-{trainer.step:06d}.png")
        entries = trainer.log.read()
        plot_losses(entries, trainer.folder / "plots" / "loss.png")
        plot_codebook(entries, trainer.folder / "plots" / "codebook.png")


class Doctor(Callback):
    """The codebook's health in log.jsonl as `health/…`, a plot of it, and a line where something turns bad."""

    def on_start(self, trainer: TokenizerTrainer) -> None:
        self.complaints: set[str] = set()

    def on_step(self, trainer: TokenizerTrainer) -> None:
        if not trainer.is_due(trainer.recipe.training.diagnose_every_steps):
            return
        quantizer = trainer.tokenizer.quantizer
        values = running_values(quantizer) | {"rank_distance": rank_distance(quantizer)}
        trainer.record({f"health/{name}": value for name, value in values.items()})
        unhealthy = {finding.name: finding.advice for finding in findings(values, quantizer) if not finding.is_healthy}
        for name in sorted(unhealthy.keys() - self.complaints):
            trainer.say(f"step {trainer.step}  codebook: {unhealthy[name]}")
        self.complaints = set(unhealthy)
        if trainer.accelerator.is_main_process:
            plot_health(trainer.log.read(), trainer.folder / "plots" / "health.png")


class Checkpoints(Callback):
    """A checkpoint every so many steps and after the last step; last in line, so that it holds what others did."""

    def on_step(self, trainer: TokenizerTrainer) -> None:
        if trainer.is_due(trainer.recipe.training.checkpoint_every_steps):
            trainer.save()
