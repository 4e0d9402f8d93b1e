"""Peak memory of one quantizer's training step, in a process of its own: `python -m benchmarks.peak_memory`.

Counted is what the step adds to latents and their incoming gradient: codebook and its state, workspace, activations,
gradients, and with `--optimizer` AdamW's moments.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES, LARGE_CASES, Case, build_side
from benchmarks.measure import (
    PeakMemory,
    alternating_seconds,
    forget_gradients,
    make_inputs,
    take_step,
    warm_up_backend,
)

ROOT = Path(__file__).parents[1]


class MeasurementError(RuntimeError):
    """The process that measures did not come to an end; most likely it ran out of memory."""


def measure(case: Case, side: str, *, tokens: int, device: torch.device, repeats: int, train: bool) -> dict[str, Any]:
    """Take one step that counts for the memory alone and `repeats` that are timed as well.

    Returns:
        `peak_bytes`, and `seconds` of each repeat.
    """
    latents, gradient = make_inputs(case, tokens, device)
    warm_up_backend(device)
    memory = PeakMemory(device)
    module, read = build_side(case, side, device)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if train and trained else None
    step = functools.partial(take_step, read, latents, gradient, optimizer)
    actions = {side: (step, functools.partial(forget_gradients, latents, module))}
    seconds = alternating_seconds(actions, warmup=1, repeats=repeats, device=device)
    return {"peak_bytes": memory.growth(), "seconds": seconds[side]}


def measure_apart(
    case: Case, side: str, *, tokens: int, device: torch.device, repeats: int = 0, large: bool = False
) -> dict[str, Any]:
    """Run `measure` in a new process, with AdamW's step where `large`.

    Raises:
        MeasurementError: the process failed.
    """
    command = [sys.executable, "-m", "benchmarks.peak_memory", case.name, side]
    command += ["--tokens", str(tokens), "--device", str(device), "--repeats", str(repeats)]
    command += ["--large"] if large else []
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise MeasurementError(f"{' '.join(command[1:])} ended with {run.returncode}: {run.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what `measure` returns as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak_memory", description=__doc__)
    parser.add_argument("case")
    parser.add_argument("side", choices=["ours", "theirs"])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--repeats", type=int, default=0)
    parser.add_argument("--large", action="store_true", help="a case with 2^18 codes, and AdamW's step")
    options = parser.parse_args(arguments)
    cases = {case.name: case for case in (LARGE_CASES if options.large else CASES)}
    found = measure(
        cases[options.case],
        options.side,
        tokens=options.tokens,
        device=options.device,
        repeats=options.repeats,
        train=options.large,
    )
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
