"""A recipe as transformers' TrainingArguments: DeepSpeed, FSDP, precision and resuming come from there."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments

from visual_tokenizer.pretraining.recipe import PretrainingRecipe
from visual_tokenizer.registry import ConfigError

ACCELERATE_PRECISION = "ACCELERATE_MIXED_PRECISION"
SCHEDULES = {"cosine": "cosine_with_min_lr", "constant": "constant_with_warmup"}
"""The recipe's schedules by transformers' names."""


def training_arguments(recipe: PretrainingRecipe) -> TrainingArguments:
    """Return the arguments of a run.

    Raises:
        ConfigError: a batch that does not divide, or a DeepSpeed file that cannot be read.
    """
    training, optimizer = recipe.training, recipe.optimizer
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = recipe.per_device_batch_size(processes)
    os.environ[ACCELERATE_PRECISION] = training.mixed_precision
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    options = {"min_lr_rate": optimizer.min_learning_rate_ratio} if optimizer.schedule == "cosine" else {}
    return TrainingArguments(
        output_dir=recipe.output_dir,
        max_steps=training.max_steps,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=optimizer.learning_rate,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        weight_decay=optimizer.weight_decay,
        warmup_steps=optimizer.warmup_steps,
        lr_scheduler_type=SCHEDULES[optimizer.schedule],
        lr_scheduler_kwargs=options,
        max_grad_norm=optimizer.max_grad_norm,
        bf16=training.mixed_precision == "bf16",
        fp16=training.mixed_precision == "fp16",
        torch_compile=training.compile,
        seed=training.seed,
        logging_strategy="steps",
        logging_steps=training.log_every_steps,
        logging_nan_inf_filter=False,  # it waits for the device at every step; the trainer looks at every log
        eval_strategy="steps" if training.evaluate_every_steps else "no",
        eval_steps=training.evaluate_every_steps or None,
        save_strategy="steps",
        save_steps=training.checkpoint_every_steps,
        save_total_limit=None,  # MaskedImageTrainer removes old ones, once the new one is complete
        ignore_data_skip=True,  # MaskedBatches begin at the step from which the run goes on
        report_to=training.report_to or "none",
        deepspeed=_deepspeed(training.deepspeed),
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        label_names=["bool_masked_pos"],
        prediction_loss_only=True,
        use_cpu=on_cpu,
        # Without an accelerator, accelerate sees the other processes only if the process group is named.
        ddp_backend="gloo" if on_cpu and processes > 1 else None,
        ddp_find_unused_parameters=False,
        **_recomputation(training.gradient_checkpointing),
    )


def _recomputation(wanted: bool) -> dict[str, Any]:
    """Return the arguments that turn gradient checkpointing on, by the name they have here."""
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if wanted else {}


def _deepspeed(path: str | None) -> dict[str, Any] | None:
    """Return a DeepSpeed configuration; its "auto" values are filled in from the arguments."""
    if path is None:
        return None
    if not Path(path).is_file():
        raise ConfigError(f"training.deepspeed: {path} does not exist; configurations are in recipes/deepspeed")
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"training.deepspeed: {path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"training.deepspeed: {path} must hold a JSON object, got {type(config).__name__}")
    return config
