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
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mmlm.checkpoint_manifest import verify_checkpoint
from mmlm.data.shards import load_shards
from mmlm.lm_recipe import LMRecipe
from mmlm.processing import MultimodalProcessor
from mmlm.train import train
from visual_tokenizer.recipe import read_recipe
from visual_tokenizer.run_folder import StepLog

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 600
"""DeepSpeed compiles a small op on its first use, a minute or several."""
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


def launch(kind: str, recipe: dict[str, Any], port: int) -> list[dict[str, torch.Tensor]]:
    """Train with two processes and return what each saw."""
    output_dir = Path(recipe["output_dir"])
    file = output_dir.with_suffix(".yaml")
    file.write_text(json.dumps(recipe))
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    options = [
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *LAUNCHERS[kind], *options]
    command = [*launcher, "--main_process_port", str(port), str(WORKER), str(file)]
    process = subprocess.Popen(
        command,
        env=environment,
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
    return [load_file(output_dir / f"rank-{rank}.safetensors") for rank in range(2)]


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", *(pytest.param(kind, marks=needs_deepspeed) for kind in ("zero2", "zero3"))])
def test_two_processes_resume(kind: str, merged_folder: Path, captioned_pictures: Path, tmp_path: Path) -> None:
    output_dir = tmp_path / "run"
    recipe = recipe_of(merged_folder, captioned_pictures, output_dir)
    launch(kind, recipe, port=29650)
    before = losses_of(output_dir)
    verify_checkpoint(output_dir / "checkpoint-4")
    (output_dir / "checkpoint-4" / "manifest.json").unlink()
    resumed = launch(kind, recipe, port=29651)
    assert all(rank["resumed"] for rank in resumed)
    assert losses_of(output_dir) == pytest.approx(before, rel=1e-5)
