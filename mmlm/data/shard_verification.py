"""Which shards are whole, found by all processes together, and how damaged ones come to be made again."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object

from mmlm.data.shard_files import is_whole
from mmlm.data.shard_plan import ShardPlan, read_plan
from mmlm.data.shards import ShardError, ShardHeader, check_header, check_sizes, read_header
from visual_tokenizer.runs.files import move_folder

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2


def unfinished_folder(folder: Path) -> Path:
    """Return where the shards of `folder` are written before they are all there."""
    return folder.with_name(f".{folder.name}.unfinished")


def whole_units(folder: Path, plan: ShardPlan) -> list[int]:
    """Return the units whose files have the content that their manifests name; the processes share the reading."""
    state = PartialState()
    mine = range(state.process_index, plan.units, state.num_processes)
    return sorted(gather_object([unit for unit in mine if is_whole(folder, unit)]))


def wait_for(condition: Callable[[], bool], seconds: float | None = None) -> bool:
    """Look until `condition` holds, and return whether it does after at most `seconds`.

    The end of the work is awaited on the disk: a collective operation would time out where one process has minutes
    more to do than another.
    """
    begin = time.monotonic()
    while not condition():
        if seconds is not None and time.monotonic() - begin > seconds:
            return False
        time.sleep(POLL_SECONDS)
    return True


def reopen_if_damaged(folder: Path, expected: ShardHeader) -> bool:
    """Verify the checksums of finished shards; if some are wrong, make the folder unfinished again and return True.

    Raises:
        UserError: the shards are of another visual tokenizer, preprocessing, source or split.
    """
    check_header(read_header(folder, type(expected)), expected, folder)
    plan = read_plan(folder)
    if plan is None:
        logger.warning("%s has no plan and cannot be verified", folder)
        return False
    damaged = sorted(set(range(plan.units)) - set(whole_units(folder, plan)))
    try:
        check_sizes(folder)
    except ShardError as error:
        logger.warning("%s", error)
    else:
        if not damaged:
            return False
    state = PartialState()
    state.wait_for_everyone()
    if state.is_main_process:
        logger.warning("%s: shards %s are damaged and are made again", folder, damaged)
        shutil.rmtree(unfinished_folder(folder), ignore_errors=True)
        move_folder(folder, unfinished_folder(folder))
    wait_for(lambda: not folder.exists())
    state.wait_for_everyone()
    return True
