"""Two real processes on a CPU: plain data parallelism, DeepSpeed ZeRO-2 and ZeRO-3, by the documented
commands."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mmlm.data.shards import load_shards
from mmlm.processing import MultimodalProcessor
from mmlm.recipes.training import LMRecipe
from mmlm.training.build import train
from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.runs.folder import StepLog
from visual_tokenizer.runs.manifest import verify_manifest

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 600
"""DeepSpeed compiles a small op on its first use, a minute or several."""
TOLERANCE = 2e-5
"""Relative, in float32: sums over processes are taken in another order."""
BF16_TOLERANCE = 1e-2
"""Relative, of bf16 to float32."""
WORKER = Path(__file__).with_name("distributed_worker.py")
LAUNCHERS = {
    "ddp": ["--config_file", str(ROOT / "recipes/accelerate/cpu_2_processes.yaml")],
    "fsdp2": ["--config_file", str(ROOT / "recipes/accelerate/fsdp2.yaml")],
    "zero2": ["--use_deepspeed", "--deepspeed_config_file", str(ROOT / "recipes/deepspeed/zero2.json")],
    "zero3": ["--use_deepspeed", "--deepspeed_config_file", str(ROOT / "recipes/deepspeed/zero3.json")],
}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None or shutil.which("ninja") is None,
    reason="DeepSpeed and ninja are not installed",
)


def recipe_of(merged_folder: Path, captioned_pictures: Path, output_dir: Path, **training: Any) -> dict[str, Any]:
    return {
        "model": str(merged_folder),
        "output_dir": str(output_dir),
        "data": {
            "source": {"type": "image_folder", "folder": str(captioned_pictures), "heldout_fraction": 0.0},
            "shards_dir": str(output_dir.parent / "shards"),
            "tokenize_batch_size": 12,
            "image_to_text_fraction": 0.3,
        },
        "optimizer": {"learning_rate": 0.003, "warmup_steps": 1},
        "training": {
            "max_steps": 4,
            "batch_size": 8,
            "gradient_accumulation_steps": 2,
            "log_every_steps": 1,
            "checkpoint_every_steps": 2,
            **training,
        },
        "sampling": {"prompts": ["a red apple"]},
    }


def environment() -> dict[str, str]:
    settings = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **settings}


def launcher(kind: str, processes: int) -> list[str]:
    """Return the documented command, without the port and the program."""
    options = {"num_processes": processes, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "accelerate.commands.launch", *LAUNCHERS[kind], *words]


def launch(kind: str, recipe: dict[str, Any], port: int, processes: int = 2) -> list[dict[str, torch.Tensor]]:
    """Train with several processes and return what each saw."""
    output_dir = Path(recipe["output_dir"])
    file = output_dir.with_suffix(".yaml")
    file.write_text(json.dumps(recipe))
    command = [*launcher(kind, processes), "--main_process_port", str(port), str(WORKER), str(file)]
    process = subprocess.Popen(
        command,
        env=environment(),
        cwd=output_dir.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        if process.poll() is None:  # with its workers, which would go on alone
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.returncode == 0, errors[-5000:]
    return [load_file(output_dir / f"rank-{rank}.safetensors") for rank in range(processes)]


@pytest.fixture(scope="module")
def alone(merged_folder: Path, captioned_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of the same run in one process."""
    recipe = recipe_of(merged_folder, captioned_pictures, tmp_path_factory.mktemp("alone") / "run")
    loaded = read_recipe(LMRecipe, None, recipe)
    train(loaded)
    return losses_of(Path(loaded.output_dir))


def losses_of(output_dir: Path) -> list[float]:
    return [line["loss"] for line in StepLog(output_dir).read() if "loss" in line]


@pytest.mark.parametrize(
    ("kind", "stage"),
    [
        ("ddp", 0),
        ("fsdp2", 0),
        pytest.param("zero2", 2, marks=needs_deepspeed),
        pytest.param("zero3", 3, marks=needs_deepspeed),
    ],
)
def test_two_processes_train_one_model(
    kind: str,
    stage: int,
    merged_folder: Path,
    captioned_pictures: Path,
    tmp_path: Path,
    alone: list[float],
) -> None:
    output_dir = tmp_path / "run"
    recipe = recipe_of(merged_folder, captioned_pictures, output_dir, sample_every_steps=4)
    ranks = launch(kind, recipe, port=29640 + stage)

    for rank in ranks:
        assert rank["processes"] == 2
        assert rank["zero_stage"] == stage
        assert not rank["logits_needed"], "the loss came from the head's input"
    assert len(list((tmp_path / "shards" / "train").glob("pictures-*.arrow"))) == 2, "both tokenized"
    assert len(load_shards(tmp_path / "shards" / "train")) == 24
    assert ranks[0]["input_ids"].shape == ranks[1]["input_ids"].shape == (16, 100)
    assert not any((row == ranks[1]["input_ids"]).all(1).any() for row in ranks[0]["input_ids"][:8]), "other samples"
    assert losses_of(output_dir) == pytest.approx(alone, rel=1e-3), "the same batches as one process"
    assert (output_dir / "samples" / "step-00000004.png").is_file()

    final = AutoModelForCausalLM.from_pretrained(output_dir / "final")
    assert final.get_output_embeddings().weight is final.get_input_embeddings().weight, "tied as before"
    MultimodalProcessor.from_pretrained(output_dir / "final").check_model(final)
    with torch.no_grad():
        logits = final(input_ids=torch.arange(40)[None]).logits
    for rank in ranks:
        assert torch.allclose(rank["logits"], logits, atol=1e-5)


KINDS = ["ddp", "fsdp2", *(pytest.param(kind, marks=needs_deepspeed) for kind in ("zero2", "zero3"))]
EIGHT = {"max_steps": 8, "checkpoint_every_steps": 4}


@pytest.fixture(scope="module")
def curve(merged_folder: Path, captioned_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of eight steps in one process, unbroken and unsharded."""
    recipe = recipe_of(merged_folder, captioned_pictures, tmp_path_factory.mktemp("curve") / "run", **EIGHT)
    train(read_recipe(LMRecipe, None, recipe))
    return losses_of(Path(recipe["output_dir"]))


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_curve_is_that_of_one_process_also_over_a_change_of_their_number(
    kind: str,
    before: int,
    after: int,
    merged_folder: Path,
    captioned_pictures: Path,
    tmp_path: Path,
    curve: list[float],
) -> None:
    output_dir = tmp_path / "run"
    recipe = recipe_of(merged_folder, captioned_pictures, output_dir, **EIGHT)
    first = launch(kind, recipe, port=29660 + before, processes=before)
    assert losses_of(output_dir) == pytest.approx(curve, rel=TOLERANCE)
    shutil.rmtree(output_dir / "checkpoint-8")
    if kind.startswith("zero"):
        (output_dir / "checkpoint-4" / "latest").write_text("")  # as a crash may leave it
    second = launch(kind, recipe, port=29664 + before, processes=after)
    assert all(rank["resumed"] for rank in second)
    assert losses_of(output_dir) == pytest.approx(curve, rel=TOLERANCE)
    once, again = (in_order(ranks, accumulation=2) for ranks in (first, second))
    assert torch.equal(once[len(once) - len(again) :], again), "the same samples in the same order"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", pytest.param("zero2", marks=needs_deepspeed)])
def test_adapters_train_alike_however_they_are_sharded(
    kind: str, merged_folder: Path, captioned_pictures: Path, tmp_path: Path
) -> None:
    """Not under ZeRO-3 here, where peft looks for CUDA as it reads the rows to train."""
    recipe = recipe_of(merged_folder, captioned_pictures, tmp_path / "alone") | {"lora": {"rank": 2, "dora": True}}
    train(read_recipe(LMRecipe, None, recipe))
    launch(kind, recipe | {"output_dir": str(tmp_path / "run")}, port=29670)
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(tmp_path / "alone"), rel=TOLERANCE)
    one, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name / "final") for name in ("alone", "run"))
    ids = torch.arange(300, 340)[None]
    with torch.no_grad():
        assert torch.allclose(one(ids).logits, other(ids).logits, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_stands_still_however_it_is_sharded(
    kind: str, merged_folder: Path, captioned_pictures: Path, tmp_path: Path
) -> None:
    stages = [{"until_step": 2}, {"until_step": 4, "train": ["new_rows", "model.norm.*"]}]
    recipe = recipe_of(merged_folder, captioned_pictures, tmp_path / "alone", freeze=stages)
    train(read_recipe(LMRecipe, None, recipe))
    launch(kind, recipe | {"output_dir": str(tmp_path / "run")}, port=29671)
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(tmp_path / "alone"), rel=TOLERANCE)
    before = AutoModelForCausalLM.from_pretrained(merged_folder).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final").state_dict()
    first = MultimodalProcessor.from_pretrained(merged_folder).vocabulary.start - 5
    table = "model.embed_tokens.weight"
    assert torch.equal(before[table][:first], after[table][:first])
    assert not torch.equal(before[table][first:], after[table][first:])
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {table, "lm_head.weight", "model.norm.weight"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS[1:])
def test_half_precision_follows_the_curve_of_full_precision(
    kind: str, merged_folder: Path, captioned_pictures: Path, tmp_path: Path, curve: list[float]
) -> None:
    changes = {**EIGHT, "mixed_precision": "bf16"}
    launch(kind, recipe_of(merged_folder, captioned_pictures, tmp_path / "run", **changes), port=29672)
    assert losses_of(tmp_path / "run") == pytest.approx(curve, rel=BF16_TOLERANCE)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_one_step(
    merged_folder: Path, captioned_pictures: Path, tmp_path: Path
) -> None:
    changes = {"max_steps": 40, "checkpoint_every_steps": 1000}
    recipe = recipe_of(merged_folder, captioned_pictures, tmp_path / "run", **changes)
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(recipe))
    command = [*launcher("ddp", 2), "--main_process_port", "29673", "-m", "mmlm.train", "--config", str(file)]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None and len(losses_of(tmp_path / "run")) < 3:
            time.sleep(0.01)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(workers[-1]), signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert "exitcode  : 143" in errors or "exitcode: 143" in errors, errors[-3000:]
    reached = len(losses_of(tmp_path / "run"))
    assert 3 <= reached < 40
    verify_manifest(tmp_path / "run" / f"checkpoint-{reached}")
    resumed = launch("ddp", recipe, port=29674)
    assert all(rank["resumed"] for rank in resumed)
    launch("ddp", recipe | {"output_dir": str(tmp_path / "whole")}, port=29675)
    assert losses_of(tmp_path / "run") == losses_of(tmp_path / "whole"), "bit for bit"


def in_order(ranks: list[dict[str, torch.Tensor]], accumulation: int) -> torch.Tensor:
    """Return the sequences that all processes saw, in the order of the set."""
    parts = [rank["input_ids"].split(8 // accumulation // len(ranks)) for rank in ranks]
    return torch.cat([part for together in zip(*parts, strict=True) for part in together])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", *(pytest.param(kind, marks=needs_deepspeed) for kind in ("zero2", "zero3"))])
def test_two_processes_resume(kind: str, merged_folder: Path, captioned_pictures: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    recipe = recipe_of(merged_folder, captioned_pictures, output_dir)
    launch(kind, recipe, port=29650)
    before = losses_of(output_dir)
    verify_manifest(output_dir / "checkpoint-4")
    (output_dir / "checkpoint-4" / "manifest.json").unlink()
    resumed = launch(kind, recipe, port=29651)
    assert all(rank["resumed"] for rank in resumed)
    assert losses_of(output_dir) == pytest.approx(before, rel=1e-5)
