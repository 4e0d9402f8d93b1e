"""A run's state as a checkpoint and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from visual_tokenizer.recipe import recipe_to_dict
from visual_tokenizer.runs.checkpoints import (
    Checkpoint,
    CheckpointError,
    flatten_optimizer,
    read_checkpoint,
    unflatten_optimizer,
)
from visual_tokenizer.runs.random_state import random_state, restore_random_state

if TYPE_CHECKING:
    from visual_tokenizer.training import TokenizerTrainer
    from visual_tokenizer.training_recipe import TokenizerRecipe


def fixed_fields(recipe: TokenizerRecipe) -> dict[str, Any]:
    """Return, by dotted key, the fields that may not change within a run: the architecture, and what a step sees."""
    values = recipe_to_dict(recipe)
    data = {name: values["data"][name] for name in ("source", "transform", "batch_size")}
    chosen = {name: values[name] for name in ("image_size", "num_frames", "encoder", "quantizer", "decoder")}
    chosen |= {"data": data, "training": {"seed": values["training"]["seed"]}}
    return dict(_flat(chosen, ""))


def _flat(values: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def capture_state(trainer: TokenizerTrainer) -> Checkpoint:
    """Return everything that the next step depends on; every process must call it."""
    optimizer, plain = flatten_optimizer(trainer.optimizer.state_dict())
    tensors = {"model": trainer.unwrapped.state_dict(), "optimizer": optimizer}
    if trainer.average is not None:
        tensors["average"] = trainer.average.module.state_dict()
    plain_of_other_side = None
    if trainer.adversarial is not None:
        of_other_side, plain_of_other_side = trainer.adversarial.capture()
        tensors |= of_other_side
    own = random_state(trainer.accelerator.device)
    own |= {f"meter/sum/{name}": value.cpu() for name, value in trainer.meter.sums.items()}
    own |= {f"meter/count/{name}": torch.tensor(count) for name, count in trainer.meter.counts.items()}
    processes = gather_object([own]) if trainer.accelerator.num_processes > 1 else [own]
    tensors |= {f"process-{number}": state for number, state in enumerate(processes)}
    scaler = trainer.accelerator.scaler
    state = {
        "step": trainer.step,
        "processes": len(processes),
        "fixed": fixed_fields(trainer.recipe),
        "optimizer": plain,
        "scaler": None if scaler is None else scaler.state_dict(),
        "adversarial": plain_of_other_side,
    }
    return Checkpoint(step=trainer.step, tensors=tensors, state=state)


def restore_state(trainer: TokenizerTrainer, path: Path) -> None:
    """Bring a freshly built trainer to the state of a verified checkpoint.

    Raises:
        CheckpointError: it belongs to another recipe; the fields that differ are named.
    """
    checkpoint = read_checkpoint(path)
    _compare(path, checkpoint.state["fixed"], fixed_fields(trainer.recipe))
    try:
        trainer.unwrapped.load_state_dict(checkpoint.tensors["model"])
        optimizer = unflatten_optimizer(checkpoint.tensors.get("optimizer", {}), checkpoint.state["optimizer"])
        trainer.optimizer.load_state_dict(optimizer)
        if trainer.adversarial is not None and checkpoint.state.get("adversarial"):
            trainer.adversarial.restore(checkpoint.tensors, checkpoint.state["adversarial"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} does not fit this recipe: {error}") from error
    if trainer.average is not None:
        # Averaging that is switched on during a run begins with the weights it finds.
        trainer.average.module.load_state_dict(checkpoint.tensors.get("average", trainer.tokenizer.state_dict()))
    if trainer.accelerator.scaler is not None and checkpoint.state["scaler"]:
        trainer.accelerator.scaler.load_state_dict(checkpoint.state["scaler"])
    trainer.step = trainer.saved_step = checkpoint.step
    if checkpoint.state["processes"] != trainer.accelerator.num_processes:
        trainer.say(
            f"{path.name} was written by {checkpoint.state['processes']} processes, this run has "
            f"{trainer.accelerator.num_processes}: the same pictures in the same order, but new random numbers"
        )
        return
    own = checkpoint.tensors[f"process-{trainer.accelerator.process_index}"]
    restore_random_state(own, trainer.accelerator.device)
    for name, value in own.items():
        if name.startswith("meter/sum/"):
            trainer.meter.sums[name.removeprefix("meter/sum/")] = value.to(trainer.accelerator.device)
        elif name.startswith("meter/count/"):
            trainer.meter.counts[name.removeprefix("meter/count/")] = int(value)


def _compare(path: Path, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    changed = sorted(key for key in {*saved, *wanted} if saved.get(key) != wanted.get(key))
    if changed:
        listed = "; ".join(f"{key}: {saved.get(key)!r} there, {wanted.get(key)!r} now" for key in changed)
        raise CheckpointError(f"{path} belongs to another recipe: {listed}. Choose another output_dir for this one.")
