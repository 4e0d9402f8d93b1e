"""Train each small semantic recipe for the same number of steps and compare pixels and meaning.

Network, losses and learning rate are each recipe's own; pictures (OpenMoji, a fifth held out), their number a step, the
steps and the seed are the same for all. SEED's two stages share the steps. What is fitted is fitted on the training
pictures and measured on the held-out ones, of which there are about 380: shares have a standard error of 2.5 % at most.

  python -m benchmarks.compare_semantic --steps 2000
  python -m benchmarks.compare_semantic --only baseline vq_kd tokenflow --steps 500 --out run/quick
  python -m benchmarks.compare_semantic --training.batch_size 16             any key of the recipes, for all alike

Beside each method stands reconstruction alone with as many codebooks and channels, for wider codes say more by their
width alone. A method passes where kNN accuracy and retrieval (mean recall: R@1, R@5 and R@10 in both directions), both
on the mean of the codes, are above that baseline's by more than two standard errors of the difference, taken picture by
picture; TokenFlow and ImageFolder keep 95 % of its PSNR too. Bags of tokens, in the columns beside, don't know of
widths. Finished runs are not repeated; one that was interrupted goes on.
Exit codes: 0 done; 1 a run diverged; 2 usage or input error; 130, 143 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quantizers import markdown_table
from benchmarks.semantic_plots import plot_methods, standard_error
from benchmarks.semantic_runs import BASELINES, METHODS, baseline_of, method_runs
from benchmarks.training_runs import Run, compare, override_pairs
from visual_tokenizer.registry import closest
from visual_tokenizer.runs.files import save_text

KEEPS_PIXELS = ("tokenflow", "imagefolder")
"""Methods that must keep `PSNR_SHARE` of the baseline's PSNR."""
PSNR_SHARE = 0.95
CLEAR = 2.0
"""Standard errors of a difference that make it clear."""

COLUMNS: Mapping[str, str] = {
    "kNN codes": "knn_accuracy_codes",
    "kNN tokens": "knn_accuracy_tokens",
    "linear codes": "linear_accuracy_codes",
    "linear tokens": "linear_accuracy_tokens",
    "R@5 codes": "text_to_image_r5_codes",
    "R@5 tokens": "text_to_image_r5_tokens",
    "mean recall codes": "mean_recall_codes",
    "purity": "purity_tokens",
    "purity by chance": "purity_chance",
    "NMI": "mutual_information_tokens",
    "NMI by chance": "mutual_information_chance",
}
"""Columns of the table, and the values."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and compare what the command line asks for; return the exit code."""
    options, overrides = _parse(arguments)

    def report(results: list[dict[str, Any]]) -> str:
        saved = ", ".join(str(options.out / f"semantic.{kind}") for kind in ("md", "json", "png"))
        return f"{result_table(_measured(results))}\n\nsaved {saved}"

    return compare(lambda: _runs(options, overrides), functools.partial(_save, options), report)


def _parse(arguments: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare_semantic",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these; a wrong name lists all")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of each method (2000)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("run/benchmarks/semantic"),
        help="folder of runs and results (run/benchmarks/semantic)",
    )
    options, rest = parser.parse_known_args(arguments)
    known = list(METHODS)
    for name in options.only or []:
        if name not in known:
            parser.error(f"no method '{name}': known are {', '.join(known)}.{closest(name, known)}")
    if options.steps < 2:
        parser.error(f"--steps must be 2 or more, got {options.steps}")
    return options, override_pairs(rest, "encoder", parser.error)


def _runs(options: Any, overrides: dict[str, Any]) -> list[Run]:
    chosen = [name for name in METHODS if options.only is None or name in options.only]
    return [
        run for name in chosen for run in method_runs(name, out=options.out, steps=options.steps, overrides=overrides)
    ]


def _measured(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [result for result in results if "semantic" in result]


def _save(options: Any, results: list[dict[str, Any]]) -> None:
    measured = _measured(results)
    if not measured:
        return
    judged = [{**result, "checks": checks(result, _baseline(result, measured))} for result in measured]
    save_text(json.dumps(judged, indent=1) + "\n", options.out / "semantic.json")
    save_text(result_table(measured) + "\n", options.out / "semantic.md")
    plot_methods(measured, options.out / "semantic.png")


def _baseline(result: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return what a method stands beside; None of a baseline itself, and where it was not run."""
    if result["name"] in BASELINES:
        return None
    return next((other for other in results if other["name"] == baseline_of(result["name"])), None)


def checks(result: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> dict[str, bool]:
    """Return what a method is held against, by name, and whether it holds; nothing without a baseline."""
    if baseline is None:
        return {}
    found = {}
    for name, own in result["outcomes"].items():
        gain = np.subtract(own, baseline["outcomes"][name])
        found[name] = bool(gain.mean() > CLEAR * gain.std() / len(gain) ** 0.5)
    if result["name"] in KEEPS_PIXELS:
        found["PSNR"] = result["heldout"]["psnr_db"] >= PSNR_SHARE * baseline["heldout"]["psnr_db"]
    return found


def result_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as a markdown table; ratios and checks where the baseline of a method is among them."""
    names = ["method", "tokens", "channels", "images/s", "PSNR dB", *COLUMNS, "± kNN codes"]
    names += ["PSNR ÷ baseline", "kNN ÷ baseline", "recall ÷ baseline", "passes"]
    lines = []
    for result in results:
        semantic = result["semantic"]
        error = standard_error(semantic[COLUMNS["kNN codes"]], result["semantic_protocol"]["heldout_pictures"])
        line = [
            result["name"],
            f"{result['tokens_per_picture']:.4g}",
            f"{result['code_dim']}",
            f"{result['images_per_second']:.0f}",
            f"{result['heldout']['psnr_db']:.2f}",
            *(f"{semantic[value]:.3f}" for value in COLUMNS.values()),
            f"{error:.3f}",
        ]
        baseline = _baseline(result, results)
        lines.append(line + (["", "", "", ""] if baseline is None else _beside(result, baseline)))
    return markdown_table(names, lines)


def _beside(result: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """Return the last cells of a method's line."""
    pairs = [
        (result["semantic"][COLUMNS[name]], baseline["semantic"][COLUMNS[name]])
        for name in ("kNN codes", "mean recall codes")
    ]
    passes = ", ".join(f"{name} {'pass' if ok else 'FAIL'}" for name, ok in checks(result, baseline).items())
    psnr = f"{result['heldout']['psnr_db'] / baseline['heldout']['psnr_db']:.3f}"
    return [psnr, *(_ratio(*pair) for pair in pairs), passes]


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}" if base else "—"


if __name__ == "__main__":
    raise SystemExit(main())
