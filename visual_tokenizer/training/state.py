"""A run's state as a checkpoint and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from torch.optim import Optimizer

from visual_tokenizer.fields.former import set_field
from visual_tokenizer.recipe import recipe_to_dict
from visual_tokenizer.runs.checkpoints import (
    Checkpoint,
    CheckpointError,
    flatten_optimizer,
    read_checkpoint,
    unflatten_optimizer,
)
from visual_tokenizer.runs.random_state import random_state, restore_random_state
from visual_tokenizer.training.adversarial import AdversarialTraining
from visual_tokenizer.training.callbacks import MeanMeter
from visual_tokenizer.training.objective import Objective
from visual_tokenizer.training.optimization import WeightAverage
from visual_tokenizer.training.recipe import TokenizerRecipe


def fixed_fields(recipe: TokenizerRecipe) -> dict[str, Any]:
    """Return, by dotted key, the fields that may not change within a run: the architecture, and what a step sees."""
    values = recipe_to_dict(recipe)
    data = {name: values["data"][name] for name in ("source", "transform")}
    chosen = {name: values[name] for name in ("image_size", "num_frames", "encoder", "quantizer", "decoder")}
    chosen |= {"data": data, "training": {name: values["training"][name] for name in ("seed", "batch_size")}}
    return dict(_flat(chosen, ""))


def _flat(values: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


@dataclass
class TrainedParts:
    """What has a state that the next step depends on."""

    objective: Objective
    optimizer: Optimizer | AcceleratedOptimizer
    average: WeightAverage | None
    adversarial: AdversarialTraining | None
    meter: MeanMeter


def capture_state(step: int, parts: TrainedParts, accelerator: Accelerator, fixed: dict[str, Any]) -> Checkpoint:
    """Return everything that the next step depends on; every process must call it.

    `fixed` is what `fixed_fields` says of the recipe; `step` is the number of steps done.
    """
    optimizer, plain = flatten_optimizer(parts.optimizer.state_dict())
    tensors = {"model": parts.objective.state_dict(), "optimizer": optimizer}
    if parts.average is not None:
        tensors["average"] = parts.average.module.state_dict()
    plain_of_other_side = None
    if parts.adversarial is not None:
        of_other_side, plain_of_other_side = parts.adversarial.capture()
        tensors |= of_other_side
    own = random_state(accelerator.device)
    own |= {f"meter/sum/{name}": value.cpu() for name, value in parts.meter.sums.items()}
    own |= {f"meter/count/{name}": torch.tensor(count) for name, count in parts.meter.counts.items()}
    processes = gather_object([own]) if accelerator.num_processes > 1 else [own]
    tensors |= {f"process-{number}": state for number, state in enumerate(processes)}
    state = {
        "step": step,
        "processes": len(processes),
        "fixed": fixed,
        "optimizer": plain,
        "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
        "adversarial": plain_of_other_side,
    }
    return Checkpoint(step=step, tensors=tensors, state=state)


def restore_state(
    path: Path, parts: TrainedParts, accelerator: Accelerator, fixed: dict[str, Any]
) -> tuple[int, list[str]]:
    """Bring freshly built parts to the state of a verified checkpoint; return its step and what is to be said of it.

    Raises:
        CheckpointError: it belongs to another recipe; the fields that differ are named.
    """
    checkpoint = read_checkpoint(path)
    _compare(path, checkpoint.state["fixed"], fixed)
    try:
        parts.objective.load_state_dict(checkpoint.tensors["model"])
        optimizer = unflatten_optimizer(checkpoint.tensors.get("optimizer", {}), checkpoint.state["optimizer"])
        parts.optimizer.load_state_dict(optimizer)
        if parts.adversarial is not None and checkpoint.state.get("adversarial"):
            parts.adversarial.restore(checkpoint.tensors, checkpoint.state["adversarial"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} does not fit this recipe: {error}") from error
    if parts.average is not None:
        # Averaging that is switched on during a run begins with the weights it finds.
        found = checkpoint.tensors.get("average", parts.objective.tokenizer.state_dict())
        parts.average.module.load_state_dict(found)
    if accelerator.scaler is not None and checkpoint.state["scaler"]:
        accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
    processes = checkpoint.state["processes"]
    if processes != accelerator.num_processes:
        return checkpoint.step, [
            f"{path.name} was written by {processes} processes, this run has {accelerator.num_processes}: the same "
            "pictures in the same order, but new random numbers"
        ]
    own = checkpoint.tensors[f"process-{accelerator.process_index}"]
    restore_random_state(own, accelerator.device)
    for name, value in own.items():
        if name.startswith("meter/sum/"):
            parts.meter.sums[name.removeprefix("meter/sum/")] = value.to(accelerator.device)
        elif name.startswith("meter/count/"):
            parts.meter.counts[name.removeprefix("meter/count/")] = int(value)
    return checkpoint.step, []


def _compare(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    present: dict[str, Any] = {}
    for key, value in saved.items():  # of an older release, with former names
        set_field(TokenizerRecipe, present, key, value)
    saved = dict(_flat(present, ""))
    changed = sorted(key for key in {*saved, *wanted} if saved.get(key) != wanted.get(key))
    if changed:
        listed = "; ".join(f"{key}: {saved.get(key)!r} there, {wanted.get(key)!r} now" for key in changed)
        raise CheckpointError(f"{path} belongs to another recipe: {listed}. Choose another output_dir for this one.")
