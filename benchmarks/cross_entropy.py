"""The loss of a large vocabulary without its logits, beside transformers' loss on logits.

One step is head, mean cross-entropy and the gradients of the hidden states and of the head's weight. Both sides take
their steps in turn in one process, median of the timed ones; the peak memory above hidden states and weight is that of
each side in a process of its own. Losses and gradients must agree.

  python -m benchmarks.cross_entropy                                       182,272 rows × 8,192 tokens, width 512
  python -m benchmarks.cross_entropy --vocabulary 45568 --tokens 2048      1/16 of it

Exit codes: 0 done; 1 the sides disagree, or with --check a target is missed: 1/5 of the memory, 1.1 times the time.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from benchmarks.measure import MIB, PeakMemory, alternating_seconds, synchronize, warm_up_backend
from benchmarks.peak_memory import ROOT, MeasurementError
from mmlm.losses.cross_entropy import linear_cross_entropy

TOLERANCE = 1e-4
"""Largest difference of a gradient, as a share of its largest element."""
MEMORY_SHARE, TIME_SHARE = 0.2, 1.1


def ours(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss, from the head's input."""
    return linear_cross_entropy(hidden, weight, labels).total / labels.numel()


def theirs(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss, from the logits of the head."""
    loss: Tensor = ForCausalLMLoss(F.linear(hidden, weight), None, weight.shape[0], shift_labels=labels)
    return loss


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"ours": ours, "theirs": theirs}


def make_inputs(options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states, a head's weight, both wanting gradients, and labels."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(options.tokens, options.hidden, generator=generator)
    weight = torch.randn(options.vocabulary, options.hidden, generator=generator) * options.hidden**-0.5
    labels = torch.randint(0, options.vocabulary, (options.tokens,), generator=generator)
    dtype = getattr(torch, options.dtype)
    leaves = [tensor.to(options.device, dtype).requires_grad_() for tensor in (hidden, weight)]
    return leaves[0], leaves[1], labels.to(options.device)


def step(side: str, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Take the loss and carry it back."""
    SIDES[side](*inputs).backward()


def forget(inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Drop the gradients of the last step."""
    inputs[0].grad = inputs[1].grad = None


def disagreement(inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    """Return the largest difference of loss or gradients between the sides, as a share of the largest element."""
    found = []
    for side in SIDES:
        loss = SIDES[side](*inputs)
        loss.backward()
        found.append([loss.detach(), *(leaf.grad for leaf in inputs[:2] if leaf.grad is not None)])
        forget(inputs)
    return max(
        float((one - other).float().abs().max() / other.float().abs().max()) for one, other in zip(*found, strict=True)
    )


def peak_bytes(side: str, options: Any) -> int:
    """Return how far the memory rises in one step, the gradients included; alone in its process."""
    inputs = make_inputs(options)
    warm_up_backend(options.device)
    memory = PeakMemory(options.device)
    step(side, inputs)
    synchronize(options.device)
    return memory.growth()


def peak_apart(side: str, options: Any) -> int:
    """Run `peak_bytes` in a new process.

    Raises:
        MeasurementError: it failed; most likely it ran out of memory.
    """
    command = [sys.executable, "-m", "benchmarks.cross_entropy", "--peak-of", side]
    for name in ("vocabulary", "tokens", "hidden", "dtype", "device"):
        command += [f"--{name}", str(getattr(options, name))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise MeasurementError(f"{' '.join(command[1:])} ended with {run.returncode}: {run.stderr.strip()[-500:]}")
    return int(run.stdout.split()[-1])


def compare(options: Any) -> dict[str, Any]:
    """Measure both sides.

    Raises:
        MeasurementError: a process failed.
    """
    peaks = {side: peak_apart(side, options) for side in SIDES}
    inputs = make_inputs(options)
    difference = disagreement(inputs)
    actions = {side: (functools.partial(step, side, inputs), functools.partial(forget, inputs)) for side in SIDES}
    seconds = alternating_seconds(actions, warmup=options.warmup, repeats=options.repeats, device=options.device)
    medians = {side: statistics.median(found) for side, found in seconds.items()}
    return {
        "vocabulary": options.vocabulary,
        "tokens": options.tokens,
        "hidden": options.hidden,
        "dtype": options.dtype,
        "device": str(options.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "disagreement": difference,
        "peak_bytes": peaks,
        "seconds": seconds,
        "memory_share": peaks["ours"] / peaks["theirs"],
        "time_share": medians["ours"] / medians["theirs"],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cross_entropy",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--vocabulary", type=int, default=182272)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write")
    parser.add_argument("--check", action="store_true", help="fail where a target is missed")
    parser.add_argument("--peak-of", choices=list(SIDES), help="print the peak memory of one side and end")
    options = parser.parse_args(arguments)
    options.device = torch.device(options.device)
    if options.peak_of is not None:
        print(peak_bytes(options.peak_of, options))
        return 0
    try:
        found = compare(options)
    except MeasurementError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{found['vocabulary']} rows × {found['tokens']} tokens, width {found['hidden']}, {found['dtype']}")
    for side in SIDES:
        seconds = statistics.median(found["seconds"][side])
        print(f"{side:7} {seconds:9.3f} s {found['peak_bytes'][side] / MIB:9.0f} MiB")
    print(f"ours / theirs: time {found['time_share']:.2f}, memory {found['memory_share']:.3f}")
    print(f"largest difference of loss and gradients {found['disagreement']:.1e} of the largest element")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    missed = found["memory_share"] > MEMORY_SHARE or found["time_share"] > TIME_SHARE
    tolerance = TOLERANCE if options.dtype == "float32" else 0.05
    return int(not found["disagreement"] <= tolerance or (options.check and missed))


if __name__ == "__main__":
    sys.exit(main())
