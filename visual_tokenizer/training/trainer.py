"""Training of a visual tokenizer: the loop, its state, and how it goes on after an interruption."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm

from visual_tokenizer.configuration import VisualTokenizerConfig
from visual_tokenizer.data.batches import PictureSet, Share, fixed_pixels, training_batches, training_keys
from visual_tokenizer.data.sources.base import DataSourceError, SourceConfig
from visual_tokenizer.discriminators.base import DiscriminatorConfig
from visual_tokenizer.encoders.base import Encoder
from visual_tokenizer.errors import DivergedError, Interrupted
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.recipe import recipe_to_dict, save_recipe
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.checkpoints import newest_good, remove_unfinished, write_checkpoint
from visual_tokenizer.runs.folder import RunLock, StepLog
from visual_tokenizer.runs.manifest import verify_manifest
from visual_tokenizer.runs.processes import StopSignals, build_accelerator, on_first_process
from visual_tokenizer.runs.random_state import random_state, restore_random_state
from visual_tokenizer.runs.section import RESUME_AUTO, RESUME_NEVER
from visual_tokenizer.teacher import Teacher
from visual_tokenizer.training.adversarial import AdversarialTraining
from visual_tokenizer.training.callbacks import (
    Callback,
    Checkpoints,
    Doctor,
    HeldoutEvaluation,
    Logging,
    MeanMeter,
    Samples,
)
from visual_tokenizer.training.export import export_tokenizer
from visual_tokenizer.training.fine_tuning import copy_proxy, freeze_parts, load_weights
from visual_tokenizer.training.memory import channels_last, checkpoint_blocks, lay_out_channels_last
from visual_tokenizer.training.objective import Objective, build_losses
from visual_tokenizer.training.optimization import WeightAverage, build_optimizer, learning_rate
from visual_tokenizer.training.recipe import TokenizerRecipe
from visual_tokenizer.training.state import TrainedParts, capture_state, fixed_fields, restore_state


class TokenizerTrainer:
    """Trains the tokenizer of a recipe. `train()` goes on where an earlier run in the same folder was interrupted.

    Args:
        recipe: what to train, on what, how.

    Raises:
        ConfigError: the recipe does not fit the processes it is started with.
        MissingWeightsError: the teacher is not on this machine.
    """

    def __init__(self, recipe: TokenizerRecipe) -> None:
        self.recipe = recipe
        self.folder = Path(recipe.output_dir)
        self.log = StepLog(self.folder)
        self.fixed = fixed_fields(recipe)
        self.accelerator = build_accelerator(
            mixed_precision=recipe.training.mixed_precision,
            log_with=recipe.training.report_to or None,
            project_dir=str(self.folder / "trackers"),
        )
        processes = self.accelerator.num_processes
        self.share = Share(
            process=self.accelerator.process_index,
            processes=processes,
            passes=recipe.training.gradient_accumulation_steps,
            size=recipe.training.per_device_batch_size(processes),
        )
        # Before anything is read or written: what is missing is to be said at once.
        self.teacher = None if recipe.teacher is None else Teacher(recipe.teacher)
        self.callbacks: list[Callback] = [Logging(), HeldoutEvaluation(), Samples(), Doctor(), Checkpoints()]
        self.meter = MeanMeter()
        self.step = 0
        self.saved_step = -1
        self.rate = 0.0
        self.stop_signal = 0
        self.batches: Iterator[dict[str, Any]] = iter(())
        set_seed(recipe.training.seed)  # the same weights on every process
        self.source = SourceConfig.family.build(recipe.data.source)
        self.unwrapped = self._build_objective()
        self.tokenizer, self.losses = self.unwrapped.tokenizer, self.unwrapped.losses
        self.frozen = freeze_parts(self.tokenizer, recipe.freeze)
        decay = recipe.training.ema_decay
        self.average = WeightAverage(self.tokenizer, decay) if decay > 0 else None
        if recipe.training.gradient_checkpointing:
            checkpoint_blocks(self.tokenizer)  # after the copy for the average, which would share what it changes
        if recipe.training.compile:
            for part in (self.tokenizer.encoder, self.tokenizer.decoder, *self.losses.values()):
                part.compile()
        optimizer = build_optimizer(self.unwrapped, recipe.optimizer)
        self.objective, self.optimizer = self.accelerator.prepare(self.unwrapped, optimizer)
        self.adversarial = self._build_adversarial()

    def _build_objective(self) -> Objective:
        recipe = self.recipe
        config = VisualTokenizerConfig(
            image_size=recipe.image_size,
            num_frames=recipe.num_frames,
            encoder=recipe.encoder.to_dict(),
            quantizer=recipe.quantizer.to_dict(),
            decoder=recipe.decoder.to_dict(),
        )
        losses = build_losses(recipe.losses, self.teacher)
        objective = Objective(VisualTokenizer(config), losses).to(self.accelerator.device).train()
        if recipe.training.channels_last:
            lay_out_channels_last(objective)
        return objective

    def _build_adversarial(self) -> AdversarialTraining | None:
        recipe = self.recipe
        if recipe.adversarial is None:
            return None
        discriminator = DiscriminatorConfig.family.build(
            recipe.adversarial.discriminator, image_size=recipe.image_size, num_frames=recipe.num_frames
        )
        if recipe.training.compile and recipe.adversarial.adaptive:
            # The adaptive weight goes back through the decoder's graph before the step does.
            torch._functorch.config.donated_buffer = False  # type: ignore[attr-defined]
        return AdversarialTraining(
            recipe.adversarial,
            discriminator,
            self.accelerator,
            last_layer=self.tokenizer.decoder.last_layer if recipe.adversarial.adaptive else None,
            optimizer=recipe.optimizer,
            max_steps=recipe.training.max_steps,
            passes=recipe.training.gradient_accumulation_steps,
            channels_last=recipe.training.channels_last,
        )

    def train(self) -> Path:
        """Train to the last step and return the folder `final/`.

        Raises:
            UserError: another run is at work in the folder.
            CheckpointError: no checkpoint is intact, the newest belongs to another recipe, or none can be written.
            DataSourceError: there are too few pictures.
            DivergedError: the loss became NaN or infinite.
            Interrupted: SIGTERM or SIGINT; a checkpoint was written.
        """
        lock = self._take_folder()
        try:
            with StopSignals() as signals:
                self.begin()
                start = self.step
                self._run(signals)
            is_done = start == self.step and (self.folder / "final").is_dir()
            return self.folder / "final" if is_done else self._export()
        finally:
            for callback in self.callbacks:
                callback.on_end()
            if lock is not None:
                lock.release()
            self.accelerator.end_training()

    def _take_folder(self) -> RunLock | None:
        """Lock the run's folder on the first process and return the lock there."""
        locks: list[RunLock] = []

        def take() -> None:
            is_used = self.log.path.exists() or (self.folder / "checkpoints").exists()
            if is_used and self.recipe.training.resume == RESUME_NEVER:
                raise ConfigError(f"{self.folder} holds a run, and training.resume is never: choose another output_dir")
            locks.append(RunLock(self.folder))
            remove_unfinished(self.folder / "checkpoints")

        on_first_process(self.accelerator, take)
        return locks[0] if locks else None

    def _export(self) -> Path:
        target = self.folder / "final"

        def write() -> None:
            export_tokenizer(
                target,
                self.exported,
                self.recipe,
                log=self.log.read(),
                samples=self.folder / "samples",
                attribution=self.source.attribution,
                steps=self.step,
            )

        on_first_process(self.accelerator, write)
        self.say(f"saved {target}")
        return target

    def heldout_pictures(self, count: int, process: int = 0, processes: int = 1) -> PictureSet:
        """Return a process's part of the first held-out pictures; training pictures, where none is held out."""
        part = {"max_pictures": count, "process": process, "processes": processes}
        sizes = {"image_size": self.recipe.image_size, **part}
        try:
            return PictureSet(self.source, "heldout", self.recipe.data, **sizes)
        except DataSourceError as error:
            self.say(f"{error}: samples and evaluation use training pictures")
            return PictureSet(self.source, "train", self.recipe.data, **sizes)

    def begin(self) -> None:
        """Load the newest good checkpoint, or the first weights; then read on from the step reached."""
        if self.teacher is not None and self.teacher.section.cache_dir is not None:
            sizes = fixed_pixels(self.recipe.data, self.recipe.image_size)
            self.teacher.open_cache(training_keys(self.source), sizes)
        set_seed(self.recipe.training.seed, device_specific=True)
        found = on_first_process(self.accelerator, self._find_checkpoint)
        if found is not None:
            self.step, notes = restore_state(Path(found), self._parts(), self.accelerator, fixed_fields(self.recipe))
            self.saved_step = self.step
            for line in notes:
                self.say(line)
            self.say(f"going on from {Path(found).name}")
        else:
            self._initialize()
        state = random_state(self.accelerator.device)
        self.batches = self._batches_from(self.step)
        restore_random_state(state, self.accelerator.device)  # whatever building the data drew
        on_first_process(self.accelerator, self._begin_log)
        if self.recipe.training.report_to:
            self.accelerator.init_trackers("visual_tokenizer", config={"recipe": str(recipe_to_dict(self.recipe))})

    def _parts(self) -> TrainedParts:
        return TrainedParts(self.unwrapped, self.optimizer, self.average, self.adversarial, self.meter)

    def _find_checkpoint(self) -> str | None:
        resume = self.recipe.training.resume
        if resume not in (RESUME_AUTO, RESUME_NEVER):
            verify_manifest(Path(resume))
            return resume
        checkpoint, complaints = newest_good(self.folder / "checkpoints")
        for complaint in complaints:
            self.say(f"warning: {complaint}")
        return None if checkpoint is None else str(checkpoint)

    def _begin_log(self) -> None:
        save_recipe(self.recipe, self.folder)
        self.log.truncate(self.step)

    def _batches_from(self, step: int) -> Iterator[dict[str, Any]]:
        recipe = self.recipe
        seed = recipe.training.seed
        return training_batches(
            self.source,
            recipe.data,
            image_size=recipe.image_size,
            seed=seed,
            share=self.share,
            first_step=step,
        )

    @torch.no_grad()
    def _initialize(self) -> None:
        """Take others' weights, if wanted; show the quantizer latents until it has its first codebook."""
        for part in self.tokenizer.modules():
            if isinstance(part, Encoder):
                part.read_weights()
        if "proxy_codes" in self.losses:
            loss: Any = self.losses["proxy_codes"]
            copy_proxy(self.tokenizer, loss.network)
        if self.recipe.initialize_from is not None:
            load_weights(self.tokenizer, self.recipe.initialize_from)
        quantizer = self.tokenizer.quantizer
        while (wanted := quantizer.samples_wanted) > 0:
            batches = self._batches_from(0)
            pool: list[Tensor] = []
            while sum(map(len, pool)) * self.share.processes < wanted:
                with self.accelerator.autocast():
                    latents = self.tokenizer.latents(self._next(batches)["pixels"])
                pool.append(latents.float().flatten(0, 1))
            quantizer.initialize(torch.cat(pool))
            if quantizer.samples_wanted >= wanted:
                raise RuntimeError(
                    f"{type(quantizer).__name__}.initialize took {wanted} latents and wants as many more"
                )
        if self.average is not None:
            self.average.module.load_state_dict(self.tokenizer.state_dict())

    def _next(self, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        batch = next(batches)
        pixels = batch["pixels"].to(self.accelerator.device, non_blocking=True)
        return {**batch, "pixels": channels_last(pixels) if self.recipe.training.channels_last else pixels}

    def _run(self, signals: StopSignals) -> None:
        for callback in self.callbacks:
            callback.on_start(self)
        while self.step < self.recipe.training.max_steps:
            self._train_step()
            for callback in self.callbacks:
                callback.on_step(self)
            if self._agree_to_stop(signals):
                self.save()
                raise Interrupted(self.stop_signal, self.step)

    def _train_step(self) -> None:
        """Make one optimiser step from the next `training.batch_size` pictures of all processes.

        The tokenizer goes forward once a pass; both sides of adversarial training learn from that reconstruction.
        """
        passes, section = self.share.passes, self.recipe.optimizer
        self.unwrapped.begin_step(self.step)
        self.rate = learning_rate(section, self.step, self.recipe.training.max_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        for part in self.frozen:
            part.eval()  # whoever evaluated the tokenizer has put all of it back into training mode
        for number in range(passes):
            batch = self._next(self.batches)
            is_last = number == passes - 1
            # Gradients are averaged over processes once a step, in the last pass.
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.objective):
                output = self.objective(batch)
                loss, values = output.loss, dict(output.values)
                if self.adversarial is not None:  # the bare discriminator judges; its parameters take no gradient here
                    term, logged = self.adversarial.generator_term(output, self.step)
                    loss, values = loss + term, values | logged
                self.accelerator.backward(loss / passes)
            if self.adversarial is not None:
                values |= self.adversarial.accumulate(batch["pixels"], output.pixels, self.step, is_last)
            self.meter.add({"loss": loss, **values})
        # Nothing here waits for the device: the meter adds there, and the norm is looked at when it is logged or saved.
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), section.max_grad_norm)
        self.meter.add({"gradient_norm": norm})
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.adversarial is not None:
            self.meter.add(self.adversarial.update(self.step))
        self.step += 1
        if self.average is not None:
            self.average.update(self.tokenizer, self.step)

    def _agree_to_stop(self, signals: StopSignals) -> bool:
        """Tell whether a process got a signal; several processes ask one another only when they log."""
        self.stop_signal = signals.received
        if self.accelerator.num_processes > 1:
            if not self.is_due(self.recipe.training.log_every_steps):
                return False
            received = torch.tensor([signals.received], device=self.accelerator.device)
            self.stop_signal = int(self.accelerator.gather(received).max())
        return self.stop_signal != 0 and self.step < self.recipe.training.max_steps

    def is_due(self, every_steps: int) -> bool:
        """Tell whether something that happens every so many steps (0: never), and after the last, happens now."""
        is_last = self.step == self.recipe.training.max_steps
        return is_last or (every_steps > 0 and self.step % every_steps == 0)

    @property
    def exported(self) -> VisualTokenizer:
        """The tokenizer that a user gets: the averaged one, if there is one."""
        return self.tokenizer if self.average is None else self.average.module

    def save(self) -> None:
        """Write a checkpoint of the current step, unless there is one.

        Raises:
            DivergedError: the gradient became NaN or infinite.
            UserError: on the first process; FirstProcessError on the others.
        """
        if self.saved_step == self.step:
            return
        norms = [norm for name, norm in self.meter.sums.items() if name.endswith("gradient_norm")]
        # The norms are the same on every process. With fp16 they may be infinite: then the step was left out.
        if norms and self.accelerator.scaler is None and not bool(torch.isfinite(torch.stack(norms)).all()):
            raise DivergedError(f"the gradient is not finite at step {self.step}; no checkpoint is written of it")
        checkpoint = capture_state(self.step, self._parts(), self.accelerator, self.fixed)
        keep = self.recipe.training.keep_checkpoints
        folder = self.folder / "checkpoints"
        on_first_process(self.accelerator, lambda: str(write_checkpoint(folder, checkpoint, keep)))
        self.saved_step = self.step

    def record(self, values: dict[str, float]) -> None:
        """Write values of the current step to log.jsonl and the trackers."""
        if self.accelerator.is_main_process:
            self.log.append(self.step, values)
        if self.recipe.training.report_to:
            self.accelerator.log(values, step=self.step)

    def say(self, line: str) -> None:
        """Print a line on the first process."""
        if self.accelerator.is_main_process:
            tqdm.write(line)
            sys.stdout.flush()
