"""What a manifest says of how a checkpoint was written, and what is made of it; see also test_distributed.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmlm.training.resharding import checkpoint_facts, deepspeed_tag, part_step_counts, prepare_checkpoint
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.manifest import CheckpointError, read_facts, verify_manifest, write_manifest


def run(stage: int | None, processes: int = 1) -> Any:
    """What of a trainer is looked at; `stage` None: without sharding."""
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config={})
    accelerator = SimpleNamespace(
        num_processes=processes, state=SimpleNamespace(deepspeed_plugin=plugin), wait_for_everyone=lambda: None
    )
    return SimpleNamespace(
        is_deepspeed_enabled=stage is not None,
        is_fsdp_enabled=False,
        accelerator=accelerator,
        args=SimpleNamespace(should_save=True),
    )


def checkpoint(folder: Path, trainer: Any) -> Path:
    (folder / "global_step4").mkdir(parents=True)
    (folder / "global_step4" / "states.pt").write_bytes(b"x")
    if trainer.is_deepspeed_enabled:
        (folder / "latest").write_text("global_step4")
    write_manifest(folder, **checkpoint_facts(trainer, folder))
    return folder


def test_the_manifest_names_deepspeeds_subfolder_where_its_own_note_is_empty(tmp_path: Path) -> None:
    trainer = run(2)
    folder = checkpoint(tmp_path / "checkpoint-4", trainer)
    assert read_facts(folder) == {"sharding": "zero-2", "processes": 1, "tag": "global_step4"}
    (folder / "latest").write_text("")
    verify_manifest(folder)
    prepare_checkpoint(trainer, folder)
    assert (folder / "latest").read_text() == "global_step4"
    assert trainer.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] == {"load_universal": False}


def test_older_checkpoints_are_read_by_their_note(tmp_path: Path) -> None:
    (tmp_path / "global_step9").mkdir()
    with pytest.raises(CheckpointError, match=r"subfolder global_step… is missing"):
        deepspeed_tag(tmp_path, {})
    (tmp_path / "latest").write_text("global_step9\n")
    assert deepspeed_tag(tmp_path, {}) == "global_step9"
    with pytest.raises(CheckpointError, match="subfolder global_step8 is missing"):
        deepspeed_tag(tmp_path, {"tag": "global_step8"})


def test_another_sharding_is_refused_by_name(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "checkpoint-4", run(3, processes=2))
    for other, name in ((run(2), "zero-2"), (run(None), "none")):
        with pytest.raises(ConfigError, match=rf"written with sharding zero-3, this run is launched with {name}"):
            prepare_checkpoint(other, folder)


def test_every_tensor_has_its_own_step_count() -> None:
    weights = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = torch.optim.AdamW(weights)
    shared = torch.tensor(4.0)
    for weight in weights:
        optimizer.state[weight] = {"step": shared, "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
        weight.grad = torch.ones(2)
    part_step_counts(optimizer)
    optimizer.step()
    assert [float(state["step"]) for state in optimizer.state.values()] == [5.0, 5.0]
