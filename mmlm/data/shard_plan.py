"""How the tokenization of a split is divided: into units that do not depend on the number of processes.

A unit is a range of rows, or one file of a stream, and becomes one shard file. The plan is written down first, so
that a run that goes on after a kill, with more or fewer processes or another batch size, has the same units.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets

from mmlm.data.shard_files import ShardManifest, ShardWriter, read_manifest
from mmlm.data.shards import (
    FILES_NAME,
    HEADER_NAME,
    ShardError,
    ShardHeader,
    header_provenance,
)
from visual_tokenizer.errors import UserError
from visual_tokenizer.runs.files import move_folder, save_json

logger = logging.getLogger(__name__)

PLAN_NAME = "plan.json"
UNITS_WANTED = 256
"""Units of a set of middle size: enough to share among processes evenly, and to lose little by a kill."""
MOST_ROWS = 16_384
"""Pictures of a unit at most."""
KEYS_AT_A_TIME = 10_000


@dataclass
class ShardPlan:
    """The units of a split."""

    provenance: dict[str, Any]
    """What the header will say, without what is known only at the end."""
    keys_hash: str
    """SHA-256 of the keys in order; empty for a stream."""
    units: int
    """Units 0 … units - 1."""
    rows: int | None
    """Pictures in all; None for a stream."""
    rows_per_unit: int | None
    """Pictures of each unit but the last; None for a stream."""

    def range_of(self, unit: int) -> range:
        """Return the rows of a unit of a map-style set."""
        if self.rows is None or self.rows_per_unit is None:
            raise UserError("the units of a stream are its files, not ranges of rows")
        return range(unit * self.rows_per_unit, min((unit + 1) * self.rows_per_unit, self.rows))


def plan_shards(rows: Any, header: ShardHeader, batch_size: int, rows_per_unit: int | None = None) -> ShardPlan:
    """Divide a source's rows, as `load_encoded` returned them.

    Args:
        rows: map-style or streamed.
        header: what the shards will be.
        batch_size: a unit has a multiple of it, so that only the last batch of all is small.
        rows_per_unit: pictures of a unit; None: by the size of the set. Unused for streams.
    """
    provenance = json.loads(json.dumps(header_provenance(header)))  # as it will be read back
    if isinstance(rows, datasets.IterableDataset):
        return ShardPlan(provenance, "", rows.num_shards, None, None)
    if rows_per_unit is None:
        wanted = min(max(-(-len(rows) // UNITS_WANTED), batch_size), max(MOST_ROWS, batch_size))
        rows_per_unit = -(-wanted // batch_size) * batch_size
    digest = hashlib.sha256()
    keys = rows.with_format(None)
    for start in range(0, len(rows), KEYS_AT_A_TIME):
        part = keys.select_columns(["key"])[start : start + KEYS_AT_A_TIME]["key"]
        digest.update(json.dumps([str(key) for key in part]).encode())
    return ShardPlan(provenance, digest.hexdigest(), -(-len(rows) // rows_per_unit), len(rows), rows_per_unit)


def read_plan(folder: Path) -> ShardPlan | None:
    """Return the plan of a folder; None if there is none that can be read."""
    try:
        return ShardPlan(**json.loads((folder / PLAN_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def open_unfinished(unfinished: Path, plan: ShardPlan) -> ShardPlan:
    """Make the folder of unfinished shards ready and return the plan to follow; one process calls this.

    Shards of an interrupted run stay if it had the same plan, whatever its `rows_per_unit`; of another run everything
    goes. Half-written files go in any case.
    """
    found = read_plan(unfinished)
    if found is not None:
        same = ShardPlan(plan.provenance, plan.keys_hash, found.units, plan.rows, found.rows_per_unit)
        if found == same and (plan.rows is not None or plan.units == found.units):
            for leftover in unfinished.glob(".*"):
                leftover.unlink(missing_ok=True)
            return found
        logger.warning("%s was made with another tokenizer or other pictures: starting again", unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_json(asdict(plan), unfinished / PLAN_NAME)
    return plan


def finish_shards(unfinished: Path, folder: Path, header: ShardHeader, units: int) -> None:
    """Write the files that `datasets` and `load_shards` want and give the folder its name.

    Fills in the header's `count`, `skipped`, `skipped_by_reason` and `changed`.

    Raises:
        ShardError: a unit is missing, or `folder` came into being meanwhile.
    """
    manifests: list[ShardManifest] = []
    for unit in range(units):
        manifest = read_manifest(unfinished, unit)
        if manifest is None:
            raise ShardError(f"{unfinished}: shard {unit} of {units} is missing")
        manifests.append(manifest)
    if not manifests:  # a split without pictures: a file without rows, from which the columns are known
        manifests.append(ShardWriter(unfinished, header, 0).close())
    header.count = sum(manifest.count for manifest in manifests)
    header.skipped = {key: reason for manifest in manifests for key, reason in manifest.skipped.items()}
    header.skipped_by_reason = count_reasons(header.skipped.values())
    changed: Counter[str] = Counter()
    for manifest in manifests:
        changed.update(manifest.changed)
    header.changed = dict(sorted(changed.items()))
    datasets.DatasetInfo(features=header.features()).write_to_directory(str(unfinished))
    state: dict[str, Any] = {
        "_data_files": [{"filename": manifest.file} for manifest in manifests],
        "_fingerprint": header.codec_hash[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    save_json(state, unfinished / "state.json")
    save_json(
        [asdict(manifest) | {"skipped": len(manifest.skipped)} for manifest in manifests], unfinished / FILES_NAME
    )
    save_json(asdict(header), unfinished / HEADER_NAME)
    try:
        move_folder(unfinished, folder)
    except OSError as error:
        raise ShardError(f"{folder} cannot be made from {unfinished}: {error}") from error


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """Return how often each reason occurs, the most frequent first; numbers in them count as equal."""
    words = (["#" if any(sign.isdigit() for sign in word) else word for word in reason.split()] for reason in reasons)
    counts = Counter(map(" ".join, words))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
