"""A recipe's sections as transformers' TrainingArguments: DeepSpeed, FSDP, precision and resuming come from there."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainingArguments

from visual_tokenizer.errors import UserError
from visual_tokenizer.hf_training.schedules import schedule_arguments

ACCELERATE_PRECISION = "ACCELERATE_MIXED_PRECISION"


def total_steps(training: Any, sequences: int) -> int:
    """Return the optimizer steps of a run on so many training pictures, or rows of packed ones, an epoch.

    Args:
        training: a recipe's section with `max_steps`, `epochs` and `batch_size`.
    """
    if training.max_steps is not None:
        return training.max_steps
    return max(1, round((training.epochs or 0) * sequences / training.batch_size))


def total_sequences(training: Any, sequences: int) -> int | None:
    """Return the sequences that a run of `epochs` reads, or None where it goes by `max_steps`."""
    return None if training.epochs is None else max(1, round(training.epochs * sequences))


def training_arguments(
    output_dir: str,
    optimizer: Any,
    training: Any,
    *,
    schedule: str,
    schedule_options: Mapping[str, Any] | None = None,
    **others: Any,
) -> TrainingArguments:
    """Return the arguments of a run; `max_steps` is still 1 where the recipe counts epochs.

    Make them before the model: under ZeRO-3 `from_pretrained` shards the weights while it reads them, which
    it knows from these arguments being alive.

    Args:
        output_dir: of the run.
        optimizer: the recipe's section of AdamW.
        training: the recipe's section of the run.
        schedule: of the learning rate, by transformers' name.
        schedule_options: its further arguments.
        **others: further arguments, by transformers' names.

    Raises:
        UserError: a batch that does not divide, or a DeepSpeed file that cannot be read.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    batch = training.per_device_batch_size(processes)
    os.environ[ACCELERATE_PRECISION] = training.mixed_precision
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return TrainingArguments(
        output_dir=output_dir,
        max_steps=training.max_steps or 1,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=optimizer.learning_rate,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        weight_decay=optimizer.weight_decay,
        warmup_steps=optimizer.warmup_steps,
        **schedule_arguments(schedule, optimizer.min_learning_rate_ratio, schedule_options or {}),
        max_grad_norm=optimizer.max_grad_norm,
        bf16=training.mixed_precision == "bf16",
        fp16=training.mixed_precision == "fp16",
        torch_compile=training.compile,
        seed=training.seed,
        logging_strategy="steps",
        logging_steps=training.log_every_steps,
        logging_nan_inf_filter=False,  # it waits for the device at every step; RunTrainer looks at every log
        eval_strategy="steps" if training.evaluate_every_steps else "no",
        eval_steps=training.evaluate_every_steps or None,
        save_strategy="steps",
        save_steps=training.checkpoint_every_steps,
        save_total_limit=None,  # RunTrainer removes old ones, once the new one is complete
        report_to=training.report_to or "none",
        deepspeed=read_deepspeed(training.deepspeed),
        dataloader_pin_memory=not on_cpu,
        remove_unused_columns=False,
        prediction_loss_only=True,
        use_cpu=on_cpu,
        # Without an accelerator, accelerate sees the other processes only if the process group is named.
        ddp_backend="gloo" if on_cpu and processes > 1 else None,
        ddp_find_unused_parameters=False,
        **_recomputation(training.gradient_checkpointing),
        **others,
    )


def _recomputation(wanted: bool) -> dict[str, Any]:
    """Return the arguments that turn gradient checkpointing on, by the name they have here."""
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if wanted else {}


def read_deepspeed(path: str | None) -> dict[str, Any] | None:
    """Return a DeepSpeed configuration; its "auto" values are filled in from the arguments.

    UserError where there is no such file, or no JSON object.
    """
    if path is None:
        return None
    if not Path(path).is_file():
        raise UserError(f"training.deepspeed: {path} does not exist; configurations are in recipes/deepspeed")
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"training.deepspeed: {path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"training.deepspeed: {path} must hold a JSON object, got {type(config).__name__}")
    return config
