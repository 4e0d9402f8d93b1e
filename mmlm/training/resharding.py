"""Checkpoints of another number of processes: which kind they are, and what DeepSpeed's need before they load.

Without sharding every process loads the same weights and moments, and FSDP2's are read through PyTorch's distributed
checkpoint, which cuts them anew by itself. DeepSpeed refuses ZeRO's optimizer state of another number of processes; its
universal format (Lian et al., "Universal Checkpointing", arXiv:2406.18820) holds each weight and its moments whole, and
any number of processes loads that.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import Trainer

from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.files import save_text, whole_folder
from visual_tokenizer.runs.manifest import CheckpointError, read_facts

logger = logging.getLogger(__name__)

LATEST_NAME, LATEST_UNIVERSAL_NAME = "latest", "latest_universal"
"""Where DeepSpeed looks for the subfolder to read."""
UNIVERSAL_NAME = "universal"
CONVERSION_WORKERS = 4
"""Processes that read and write at most; each holds a part of the optimizer state."""


def sharding_of(trainer: Trainer) -> str:
    """Return how a run shards its state: none, fsdp2, fsdp1 or zero-1 … zero-3."""
    if trainer.is_deepspeed_enabled:
        return f"zero-{trainer.accelerator.state.deepspeed_plugin.zero_stage}"
    if trainer.is_fsdp_enabled:
        return f"fsdp{trainer.accelerator.state.fsdp_plugin.fsdp_version}"
    return "none"


def checkpoint_facts(trainer: Trainer, folder: Path) -> dict[str, Any]:
    """Return what the manifest of a new checkpoint says of how it was written."""
    facts: dict[str, Any] = {"sharding": sharding_of(trainer), "processes": trainer.accelerator.num_processes}
    if trainer.is_deepspeed_enabled:
        facts["tag"] = (folder / LATEST_NAME).read_text(encoding="utf-8").strip()
    return facts


def prepare_checkpoint(trainer: Trainer, folder: Path) -> None:
    """Make a checkpoint loadable by this run; every process calls this before the model is prepared.

    Raises:
        ConfigError: it was written by a run that shards otherwise, or cannot be converted.
    """
    facts = read_facts(folder)
    current, processes = sharding_of(trainer), trainer.accelerator.num_processes
    written = facts.get("sharding", current)
    if written != current:
        raise ConfigError(
            f"training.resume: {folder} was written with sharding {written}, this run is launched with {current}: "
            "launch it as before, or begin from the weights in final/ of a finished run"
        )
    if not trainer.is_deepspeed_enabled:
        return
    if trainer.args.should_save:
        tag = deepspeed_tag(folder, facts)
        save_text(tag, folder / LATEST_NAME)
        if facts.get("processes", processes) != processes:
            logger.warning(
                "%s was written by %d processes, this run has %d: converting it", folder, facts["processes"], processes
            )
            convert_to_universal(folder, tag)
    trainer.accelerator.wait_for_everyone()
    plugin = trainer.accelerator.state.deepspeed_plugin
    is_universal = facts.get("processes", processes) != processes
    plugin.deepspeed_config.setdefault("checkpoint", {})["load_universal"] = is_universal


def deepspeed_tag(folder: Path, facts: dict[str, Any]) -> str:
    """Return the name of DeepSpeed's subfolder: of the manifest, or of older checkpoints the file `latest`.

    Raises:
        CheckpointError: there is no such subfolder.
    """
    latest = folder / LATEST_NAME
    tag = facts.get("tag") or (latest.read_text(encoding="utf-8").strip() if latest.is_file() else "")
    if not tag or not (folder / tag).is_dir():
        raise CheckpointError(f"{folder} is incomplete: DeepSpeed's subfolder {tag or 'global_step…'} is missing")
    return tag


def convert_to_universal(folder: Path, tag: str) -> None:
    """Write DeepSpeed's universal format of a checkpoint into it, beside the original; one that is there is kept.

    ConfigError where DeepSpeed's converter failed.
    """
    target = folder / UNIVERSAL_NAME
    if (folder / LATEST_UNIVERSAL_NAME).is_file() and target.is_dir():
        return
    workers = str(max(1, min(CONVERSION_WORKERS, (os.cpu_count() or 1) // 2)))
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--num_extract_workers", workers, "--num_merge_workers", workers]
    with whole_folder(target, existing="replace") as beside:
        command += ["--input_folder", str(folder / tag), "--output_folder", str(beside)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ConfigError(
                f"training.resume: {folder} was written by another number of processes and DeepSpeed "
                f"cannot convert it: {last}"
            )
    save_text(UNIVERSAL_NAME, folder / LATEST_UNIVERSAL_NAME)


def part_step_counts(optimizer: Any) -> None:
    """Give each tensor of an optimizer its own count of steps.

    DeepSpeed gives all parts of a ZeRO-3 optimizer that it reads from the universal format one and the same tensor, to
    which each of them then adds 1 at every step.
    """
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].clone()
