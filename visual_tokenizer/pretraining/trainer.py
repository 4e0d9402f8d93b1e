"""MaskedImageTrainer: transformers' Trainer on masked pictures and a frozen tokenizer's indices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainingArguments

from visual_tokenizer.errors import DivergedError
from visual_tokenizer.pretraining.batches import HeldoutPictures, MaskedBatches
from visual_tokenizer.pretraining.complete_checkpoints import discard_checkpoint, mark_complete, rotate_checkpoints
from visual_tokenizer.pretraining.objective import MaskedTokenMeter, masked_token_loss
from visual_tokenizer.pretraining.targets import TokenTargets
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.manifest import CheckpointError

EVALUATION_PREFIX = "eval_"
UNDECAYED = ("cls_token", "position_embeddings")


class MaskedImageTrainer(Trainer):
    """Trains a BEiT on batches of `pixel_values` (B, 3, H, W) and `bool_masked_pos` (B, N).

    The tokenizer is no part of the model: it is in no checkpoint, gets no gradient and is not sharded. Logged beside
    `loss` are `masked_loss` and `masked_accuracy` of the model's own head, and the same with `eval_` for the held-out
    pictures.

    Args:
        model: of `build_beit`.
        args: `ignore_data_skip` must be set: `batches` begin where the run goes on.
        targets: the frozen tokenizer.
        batches: this process's.
        heldout: measured now and then.
        keep_checkpoints: complete checkpoints that are kept.
        **kwargs: as of `Trainer`.

    Raises:
        ConfigError: one process sees several GPUs, which transformers would use by `DataParallel`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        targets: TokenTargets,
        batches: MaskedBatches,
        heldout: HeldoutPictures,
        keep_checkpoints: int,
        **kwargs: Any,
    ) -> None:
        if args.n_gpu > 1:
            raise ConfigError(
                f"one process sees {args.n_gpu} GPUs: start one process a GPU, `accelerate launch --multi_gpu "
                f"--num_processes {args.n_gpu} -m visual_tokenizer.pretrain …`, or show it one by CUDA_VISIBLE_DEVICES"
            )
        super().__init__(model=model, args=args, eval_dataset=heldout, **kwargs)
        # compute_loss gives the mean of a pass, which Trainer divides by the number of passes.
        self.model_accepts_loss_kwargs = False
        self.targets, self.batches, self.keep_checkpoints = targets, batches, keep_checkpoints
        torch.nn.Module.to(targets.tokenizer, args.device)
        self.train_meter, self.evaluation_meter = MaskedTokenMeter(args.device), MaskedTokenMeter(args.device)

    def get_train_dataloader(self) -> DataLoader:
        """Return the batches, which know their process and the step the run goes on from."""
        batches: Any = self.batches
        return batches

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of what weight decay is for: all but vectors, biases, class token and positions."""
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim > 1 and not name.endswith((".bias", *UNDECAYED))
        ]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a pass: the mean over its masked patches."""
        pixels, mask = inputs["pixel_values"], inputs["bool_masked_pos"]
        targets = self.targets(pixels)
        outputs = model(pixel_values=pixels, bool_masked_pos=mask)
        meter = self.train_meter if model.training else self.evaluation_meter
        meter.add(outputs.logits.detach(), targets, mask)
        loss = masked_token_loss(outputs, targets, mask)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the meters hold, then log as usual.

        Raises:
            DivergedError: the loss is not finite.
        """
        prefix = EVALUATION_PREFIX if any(key.startswith(EVALUATION_PREFIX) for key in logs) else ""
        if prefix or "loss" in logs:
            meter = self.evaluation_meter if prefix else self.train_meter
            logs |= {f"{prefix}{name}": value for name, value in meter.flush(self.accelerator).items()}
            if not math.isfinite(logs[f"{prefix}loss"]):
                raise DivergedError(f"the loss is not finite at step {self.state.global_step}")
        super().log(logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write the weights by the names they have here.

        transformers writes a BEiT's by the names of old releases and turns them back in `from_pretrained`, but not
        where Trainer resumes, which would go on from random weights.
        """
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            folder = output_dir or self.args.output_dir
            model.save_pretrained(folder, state_dict=state_dict, save_original_format=False)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint whose weights are not the model's, of which Trainer only warns.

        Raises:
            CheckpointError: weights are missing, or there are others.
        """
        wrong = [*load_result.missing_keys, *load_result.unexpected_keys]
        if wrong:
            raise CheckpointError(f"the checkpoint is of another model: {len(wrong)} weights differ, first {wrong[0]}")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, mark it as complete once all processes have written, and remove old ones."""
        output_dir = Path(str(self.args.output_dir))
        folder = output_dir / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and folder.exists():  # what an interrupted run left
            discard_checkpoint(folder)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(folder)
            rotate_checkpoints(output_dir, self.keep_checkpoints)
        self.accelerator.wait_for_everyone()
