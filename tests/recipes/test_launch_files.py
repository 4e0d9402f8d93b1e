"""The files that start a training: accelerate's and DeepSpeed's own loaders take them, and shells run them."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from accelerate.utils.deepspeed import HfDeepSpeedConfig

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
SCRIPTS = sorted([*RECIPES.glob("slurm/*"), *RECIPES.glob("ssh/*")])


@pytest.mark.parametrize("path", sorted((RECIPES / "accelerate").glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configurations(path: Path) -> None:
    config = load_config_from_file(str(path))
    written = yaml.safe_load(path.read_text())
    assert config.num_processes == written["num_processes"]
    assert config.distributed_type == DistributedType(written["distributed_type"])
    if config.distributed_type == DistributedType.FSDP:
        assert config.fsdp_config["fsdp_version"] == 2


@pytest.mark.parametrize("path", sorted((RECIPES / "deepspeed").glob("*.json")), ids=lambda path: path.stem)
def test_accelerate_reads_deepspeeds_configurations(path: Path) -> None:
    config = HfDeepSpeedConfig(str(path))
    stage = json.loads(path.read_text())["zero_optimization"]["stage"]
    assert config.is_zero3() is (stage == 3)
    assert config.is_zero2() is (stage == 2)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_reads_every_script(path: Path) -> None:
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def stand_in(folder: Path, name: str, script: str) -> None:
    """Put a command into `folder` that writes its words to `calls` there and goes on with `script`."""
    file = folder / name
    file.write_text(f'#!/bin/bash\necho "{name} $*" >> {folder}/calls\n{script}\n')
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def slurm_job(folder: Path, name: str) -> subprocess.Popen:
    """Run a batch script as Slurm would, where `srun` runs until `scancel` ends it and launches nothing."""
    stand_in(folder, "srun", f'trap "exit 143" TERM; echo $$ > {folder}/step; "${{@:2}}"; while sleep 0.05; do :; done')
    stand_in(folder, "accelerate", "true")
    stand_in(folder, "scancel", f"kill -TERM $(cat {folder}/step)")
    stand_in(folder, "scontrol", '[[ $1 == show ]] && printf "node7\\nnode8\\n"; true')
    job = {"SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_NODEID": "1"}
    environment = {**os.environ, **job, "SLURM_GPUS_ON_NODE": "4", "PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["bash", str(RECIPES / "slurm" / name), "recipe.yaml", "--training.seed", "3 4"]
    return subprocess.Popen(command, env=environment, cwd=ROOT, start_new_session=True)


@pytest.mark.parametrize(
    ("name", "module"), [("train_lm.sbatch", "mmlm.train"), ("train_tokenizer.sbatch", "visual_tokenizer.train")]
)
def test_a_job_that_gets_a_signal_stops_and_goes_back_into_the_queue(name: str, module: str, tmp_path: Path) -> None:
    process = slurm_job(tmp_path, name)
    calls = tmp_path / "calls"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (calls.is_file() and "\naccelerate launch" in calls.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=20) == 0
    lines = calls.read_text().splitlines()
    launch = next(line for line in lines if line.startswith("accelerate launch"))
    for words in (
        "--num_machines 2",
        "--num_processes 8",
        "--machine_rank 1",
        "--main_process_ip node7",
        f"-m {module} --config recipe.yaml --training.seed 3 4",
    ):
        assert words in launch
    assert lines[-2:] == ["scancel --signal=TERM 12", "scontrol requeue 12"]
    assert (ROOT / launch.split("--config_file ")[1].split()[0]).is_file()
