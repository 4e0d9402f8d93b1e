"""Complete checkpoints of transformers' Trainer: when they are, which are kept, and from which a run goes on.

transformers, DeepSpeed and FSDP write straight into `checkpoint-N`. The manifest, written last, marks a folder as
complete; a folder without it, or with a file that is not as it says, is never resumed.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from visual_tokenizer.errors import UserError
from visual_tokenizer.runs.files import discard, remove_unfinished
from visual_tokenizer.runs.manifest import CheckpointError, list_numbered, newest_whole, verify_manifest, write_manifest
from visual_tokenizer.runs.processes import on_first_process
from visual_tokenizer.runs.section import RESUME_AUTO, RESUME_NEVER

logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")


def checkpoint_folder(output_dir: Path, step: int) -> Path:
    """Return where Trainer writes the checkpoint of a step."""
    return output_dir / f"checkpoint-{step}"


def list_checkpoints(output_dir: Path) -> list[Path]:
    """Return the folders `checkpoint-N`, complete or not, by N."""
    return list_numbered(output_dir, _NAME)


def step_of(checkpoint: Path | None) -> int:
    """Return the steps that were done when a checkpoint was written; 0 where there is none."""
    if checkpoint is None:
        return 0
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step


def complete_checkpoint(folder: Path, keep: int, **facts: Any) -> None:
    """Mark a checkpoint as complete; remove all but the newest `keep` complete ones and what is older than these.

    Args:
        folder: which every process has written to.
        keep: 1 or more.
        facts: for `read_facts` of the manifest.
    """
    write_manifest(folder, **facts)
    kept = 0
    for checkpoint in reversed(list_checkpoints(folder.parent)):
        if kept >= keep:
            discard(checkpoint)
        elif _is_complete(checkpoint):
            kept += 1


def _is_complete(checkpoint: Path) -> bool:
    try:
        verify_manifest(checkpoint, contents=False)
    except CheckpointError:
        return False
    return True


def find_checkpoint(output_dir: str, resume: str) -> Path | None:
    """Return the checkpoint from which a run goes on, if any, and say which ones are passed over.

    Every process calls this; the first one looks.

    Args:
        output_dir: of the run.
        resume: `auto`: the newest complete one; `never`: none may be there; or the folder of a checkpoint.

    Raises:
        UserError: `never`, and there are checkpoints.
        CheckpointError: the named one is not complete.
        FirstProcessError: on the other processes, where the first one raised.
    """
    found = on_first_process(PartialState(), lambda: _find(Path(output_dir), resume))  # type: ignore[arg-type]
    return None if found is None else Path(found)


def _find(output_dir: Path, resume: str) -> str | None:
    remove_unfinished(output_dir, _NAME.pattern)
    if resume not in (RESUME_AUTO, RESUME_NEVER):
        verify_manifest(Path(resume))
        logger.warning("resuming from %s", resume)
        return resume
    found = list_checkpoints(output_dir)
    if resume == RESUME_NEVER and found:
        raise UserError(
            f"training.resume is never, but {output_dir} holds {found[-1].name}: name another output_dir, remove "
            "the checkpoints, or set training.resume to auto"
        )
    newest, complaints = newest_whole(found)
    for complaint in complaints:
        logger.warning("%s; %s", complaint, f"resuming from {newest.name}" if newest else "starting from the beginning")
    if newest is None:
        return None
    logger.warning("resuming from %s", newest)
    return str(newest)
