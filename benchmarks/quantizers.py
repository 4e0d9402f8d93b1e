"""Speed and memory of the quantizers, beside published code and beside what a search must compute at the least.

Tokens a second of forward and backward, in one process, this project and the other in turn, median after a warm-up; the
peak memory of a step, each side in a process of its own. Before anything is timed, both sides must choose the same
codes from the same codebook.

  python -m benchmarks.quantizers                       every case
  python -m benchmarks.quantizers --case lfq ibq --json results.json
  python -m benchmarks.quantizers --large               training steps with 262,144 codes, against 4 GiB

Exit codes: 0 done; 1 the sides disagree, a measurement failed, or a large case is over its budget; 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES, LARGE_CASES, PUBLISHED, Case, build_side
from benchmarks.measure import (
    MIB,
    SearchBound,
    alternating_seconds,
    forget_gradients,
    make_inputs,
    synchronize,
    take_step,
)
from benchmarks.peak_memory import MeasurementError, measure_apart
from visual_tokenizer.recipe import provenance

MIN_AGREEMENT = 0.999
"""Share of the indices in which both sides must agree. Not 1: they round differently, and codes may be that near."""

BUDGET_BYTES = 4 * 2**30
"""What a training step with 2^18 codes and 8,192 tokens may take."""


class DisagreementError(RuntimeError):
    """Both sides were given the same codebook and chose other codes."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for, print a table, and return the exit code."""
    options = _parse(arguments)
    table = {case.name: case for case in (LARGE_CASES if options.large else CASES)}
    chosen = [table[name] for name in options.case or table]
    where = describe_machine(options)
    print("  \n".join(f"{name}: {value}" for name, value in where.items()), flush=True)
    measured = measure_large if options.large else measure_case
    rows = []
    try:
        for number, case in enumerate(chosen, start=1):
            print(f"[{number}/{len(chosen)}] {case.about}", file=sys.stderr, flush=True)
            rows.append(measured(case, options))
    except (DisagreementError, MeasurementError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n" + (large_table(rows) if options.large else f"{comparison_table(rows)}\n\n{notes(rows)}"))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"machine": where, "rows": rows, **provenance()}, indent=1) + "\n")
    return int(any(row.get("within_budget") is False for row in rows))


def _parse(arguments: Sequence[str] | None) -> Any:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quantizers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--case", nargs="+", metavar="NAME", help="only these; a wrong name lists all")
    parser.add_argument(
        "--large", action="store_true", help="training steps with 2^18 codes, against a budget of 4 GiB"
    )
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a step (8192)")
    parser.add_argument("--repeats", type=int, help="steps that are timed (7; with --large 1)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them (2; with --large always 1)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (a GPU, if there is one)")
    parser.add_argument("--no-memory", action="store_true", help="leave the peak memory out, which takes most time")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args(arguments)
    known = [case.name for case in (LARGE_CASES if options.large else CASES)]
    for name in options.case or []:
        if name not in known:
            parser.error(f"no case '{name}': known are {', '.join(known)}")
    options.device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    options.repeats = options.repeats or (1 if options.large else 7)
    for name in ("tokens", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more, got {getattr(options, name)}")
    return options


def describe_machine(options: Any) -> dict[str, Any]:
    """Return what the numbers depend on beside the code."""
    device: torch.device = options.device
    is_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_gpu else f"CPU, {processor_name()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        PUBLISHED: importlib.metadata.version(PUBLISHED) if _has_published() else "not installed",
        "tokens a step": options.tokens,
        "timed steps": options.repeats,
        "float32 products on tensor cores": torch.backends.cuda.matmul.allow_tf32 if is_gpu else False,
    }


def processor_name() -> str:
    """Return the CPU's name and how many of its cores this process may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} cores"


def _has_published() -> bool:
    return importlib.util.find_spec("vector_quantize_pytorch") is not None


def measure_case(case: Case, options: Any) -> dict[str, Any]:
    """Check that both sides agree, time them and the bound in turn, and measure their memory.

    Raises:
        DisagreementError: they don't agree.
        MeasurementError: the memory could not be measured.
    """
    device: torch.device = options.device
    has_theirs = case.theirs is not None and (_has_published() or not case.needs_published)
    sides = {side: build_side(case, side, device) for side in (("ours", "theirs") if has_theirs else ("ours",))}
    latents, gradient = make_inputs(case, options.tokens, device)
    row: dict[str, Any] = {"case": case.name, "about": case.about, "theirs": case.theirs_name, "differs": case.differs}
    if has_theirs:
        row["same_indices"] = agreement(case, sides, latents)

    actions: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {}
    for side, (module, read) in sides.items():
        step = functools.partial(take_step, read, latents, gradient)
        actions[side] = (step, functools.partial(forget_gradients, latents, module))
    if case.searches:
        actions["bound"] = (SearchBound(options.tokens, case.searches, device), lambda: None)
    seconds = alternating_seconds(actions, warmup=options.warmup, repeats=options.repeats, device=device)
    row["seconds"] = seconds
    row["tokens_per_second"] = {name: options.tokens / statistics.median(found) for name, found in seconds.items()}
    del sides, actions
    if not options.no_memory:
        row["peak_bytes"] = {
            side: measure_apart(case, side, tokens=options.tokens, device=device)["peak_bytes"]
            for side in (("ours", "theirs") if has_theirs else ("ours",))
        }
    return row


@torch.no_grad()
def agreement(case: Case, sides: dict[str, Any], latents: torch.Tensor) -> float:
    """Return the share of indices in which both sides agree in evaluation mode.

    Raises:
        DisagreementError: they agree in fewer than 99.9 %, or give other codes for the same index.
    """
    found = {}
    for side, (module, read) in sides.items():
        module.eval()
        found[side] = read(latents)
        module.train()
    (our_codes, our_indices, _), (their_codes, their_indices, _) = found["ours"], found["theirs"]
    synchronize(latents.device)
    same = our_indices == their_indices.view(our_indices.shape)
    share = same.double().mean().item()
    whole = same.flatten(2).all(dim=2) if same.ndim > 2 else same
    error = (our_codes - their_codes)[whole].abs().max().item() if whole.any() else 0.0
    if share < MIN_AGREEMENT or error > 1e-4:
        raise DisagreementError(
            f"case '{case.name}': {share:.2%} of the indices are the same, and codes of the same index differ by up to "
            f"{error:.2g}: the two sides do not do the same, so their times do not compare"
        )
    return share


def measure_large(case: Case, options: Any) -> dict[str, Any]:
    """Take training steps, AdamW's included, in a process of its own."""
    found = measure_apart(
        case, "ours", tokens=options.tokens, device=options.device, repeats=options.repeats, large=True
    )
    return {
        "case": case.name,
        "about": case.about,
        **found,
        "budget_bytes": BUDGET_BYTES,
        "within_budget": found["peak_bytes"] <= BUDGET_BYTES,
    }


def comparison_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the rows of `measure_case` as a markdown table."""
    lines = []
    for row in rows:
        speed, peak = row["tokens_per_second"], row.get("peak_bytes", {})
        lines.append(
            [
                row["about"],
                f"{speed['ours']:,.0f}",
                f"{speed['theirs']:,.0f}" if "theirs" in speed else "—",
                f"{speed['ours'] / speed['theirs']:.2f}" if "theirs" in speed else "—",
                f"{speed['ours'] / speed['bound']:.0%}" if "bound" in speed else "no search",
                f"{peak['ours'] / MIB:,.0f}" if "ours" in peak else "—",
                f"{peak['theirs'] / MIB:,.0f}" if "theirs" in peak else "—",
                f"{row['same_indices']:.2%}" if "same_indices" in row else "—",
            ]
        )
    names = ["case", "tokens/s, ours", "tokens/s, theirs", "ratio", "of the GEMM bound"]
    names += ["peak MiB, ours", "peak MiB, theirs", "same indices"]
    return markdown_table(names, lines)


def notes(rows: Iterable[dict[str, Any]]) -> str:
    """Return what the other side of each case is, where that needs a word, and what the bound is."""
    lines = [
        f"Theirs is {PUBLISHED} unless said otherwise. Tokens/s are of forward and backward. The GEMM bound is one "
        "float32 product of tokens × C × K for each search, into memory that is there already."
    ]
    for row in rows:
        words = [] if row["theirs"] == PUBLISHED else [f"theirs is the {row['theirs']}"]
        words += [row["differs"]] if row["differs"] else []
        lines += [f"- {row['about']}: {'; '.join(words)}."] if words else []
    return "\n".join(lines)


def large_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the rows of `measure_large` as a markdown table."""
    lines = [
        [
            row["about"],
            f"{statistics.median(row['seconds']):.2f}",
            f"{row['peak_bytes'] / MIB:,.0f}",
            f"{row['budget_bytes'] / MIB:,.0f}",
            "pass" if row["within_budget"] else "FAIL",
        ]
        for row in rows
    ]
    return markdown_table(["case", "seconds a step", "peak MiB", "budget MiB", "within budget"], lines)


def markdown_table(names: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a markdown table, the columns after the first aligned right."""
    head = [names, ["---"] + ["---:"] * (len(names) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*head, *lines])


if __name__ == "__main__":
    raise SystemExit(main())
