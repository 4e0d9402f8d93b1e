"""SIGTERM ends a run after its step, with a checkpoint from which it goes on bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState

from mmlm.recipes.training import LMRecipe
from mmlm.training.build import train
from visual_tokenizer.errors import Interrupted
from visual_tokenizer.hf_training.checkpoints import list_checkpoints
from visual_tokenizer.hf_training.stopping import SharedSignals, StopAtStep
from visual_tokenizer.runs.manifest import newest_whole
from visual_tokenizer.runs.processes import StopSignals

STEPS = 60


def begin(command: list[str], environment: dict[str, str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_steps(process: subprocess.Popen, lines: Callable[[], int], count: int, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None and lines() < count:
        time.sleep(0.01)


def test_a_signal_saves_ends_with_143_and_the_run_goes_on_bit_for_bit(
    recipe_fields: dict[str, Any], tmp_path: Path, make_recipe: Callable[..., LMRecipe], losses_of: Callable[..., Any]
) -> None:
    fields = {**recipe_fields, "training.max_steps": STEPS, "training.checkpoint_every_steps": 1000}
    arguments = [f"--{key}={json.dumps(value)}" for key, value in fields.items()]
    run = tmp_path / "stopped"
    process = begin([sys.executable, "-m", "mmlm.train", *arguments, f"--output_dir={run}"], {})
    wait_for_steps(process, lambda: len(losses_of(run)), 5)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # a second one does no harm
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors[-3000:]
    assert "stopped by SIGTERM after a checkpoint of step" in errors
    reached = losses_of(run)
    assert 5 <= len(reached) < STEPS, "the run must be stopped in its middle"
    assert newest_whole(list_checkpoints(run))[0] == run / f"checkpoint-{len(reached)}"
    assert not (run / "final").exists()
    assert not (run / "run.lock").exists()

    train(make_recipe(fields, output_dir=str(run)))
    train(make_recipe(fields, output_dir=str(tmp_path / "whole")))
    assert losses_of(run) == losses_of(tmp_path / "whole")
    one, other = (AutoModelForCausalLM.from_pretrained(folder / "final") for folder in (run, tmp_path / "whole"))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_a_signal_after_the_last_step_changes_nothing() -> None:
    stop, state, control = StopAtStep(), TrainerState(global_step=6, max_steps=6), TrainerControl()
    stop.signals.received = signal.SIGTERM
    one_process: Any = type("Arguments", (), {"world_size": 1})
    stop.on_step_end(one_process, state, control)
    assert not control.should_training_stop
    state.global_step = 5
    stop.on_step_end(one_process, state, control)
    assert control.should_training_stop
    assert control.should_save


def test_every_process_learns_of_a_signal_that_one_has_received() -> None:
    signals = [StopSignals(), StopSignals()]
    shared = [SharedSignals(one) for one in signals]
    for received, expected in ((0, 0), (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM)):
        signals[1].received = received
        total = torch.tensor([one.flags() for one in shared]).sum(0)
        for one in shared:
            one.remember(total)
        assert [one.agreed() for one in shared] == [expected] * 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_to_the_process_and_its_workers_ends_the_run_after_the_step(
    workers: int,
    recipe_fields: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make_recipe: Callable[..., LMRecipe],
) -> None:
    recipe = make_recipe(recipe_fields, training__checkpoint_every_steps=100, data__loader_workers=workers)
    seen: list[int] = []
    others_children = {child.pid for child in multiprocessing.active_children()}  # of tests before

    def counting(self: StopAtStep, args: Any, state: Any, control: Any, **_: Any) -> Any:
        seen.append(state.global_step)
        if state.global_step == 2:
            children = [child.pid for child in multiprocessing.active_children()]
            children = [pid for pid in children if pid is not None and pid not in others_children]
            assert len(children) == workers
            for pid in (*children, os.getpid()):
                os.kill(pid, signal.SIGTERM)
            time.sleep(0.2)
        return on_step_end(self, args, state, control)

    on_step_end = StopAtStep.on_step_end
    monkeypatch.setattr(StopAtStep, "on_step_end", counting)
    with pytest.raises(Interrupted, match="step 2"):
        train(recipe)
    assert seen == [1, 2]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert (tmp_path / "run" / "checkpoint-2" / "manifest.json").is_file()
