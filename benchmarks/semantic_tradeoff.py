"""Train one semantic recipe at several weights of its semantic losses: what does meaning cost in pixels?

All weights of the losses that teach meaning, also those that a schedule ends at, are multiplied by one factor; all else
stays. Pictures, steps and measures are those of `benchmarks.compare_semantic`.

  python -m benchmarks.semantic_tradeoff --method tokenflow --steps 1000
  python -m benchmarks.semantic_tradeoff --method clip_aligned --factors 0 0.3 1 3 --out run/quick

Finished runs are not repeated; one that was interrupted goes on.
Exit codes: 0 done; 1 a run diverged; 2 usage or input error; 130, 143 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.quantizers import markdown_table
from benchmarks.semantic_plots import plot_tradeoff
from benchmarks.semantic_runs import FIRST_STAGES, HELDOUT_FRACTION, METHODS, SemanticRun, recipe_of
from benchmarks.training_runs import build_run, compare, override_pairs
from visual_tokenizer.registry import ConfigError, closest
from visual_tokenizer.runs.files import save_text

SEMANTIC_LOSSES = frozenset(
    {
        "causal_contrastive",
        "contrastive",
        "embedding_contrastive",
        "embedding_reconstruction",
        "feature_distillation",
        "feature_reconstruction",
        "sigmoid_contrastive",
    }
)
"""Losses that teach what a network or a caption says of a picture."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and compare what the command line asks for; return the exit code."""
    options, overrides = _parse(arguments)

    def report(results: list[dict[str, Any]]) -> str:
        stem = options.out / options.method / "tradeoff"
        return f"{result_table(with_factors(options, results))}\n\nsaved {stem}.md, .json and .png"

    return compare(lambda: _runs(options, overrides), functools.partial(_save, options), report)


def _parse(arguments: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.semantic_tradeoff",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--method", default="tokenflow", help="of benchmarks.compare_semantic (tokenflow)")
    parser.add_argument("--factors", nargs="+", type=float, default=[0.0, 0.1, 0.3, 1.0, 3.0, 10.0])
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of each run (1000)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("run/benchmarks/semantic_tradeoff"),
        help="folder of runs and results (run/benchmarks/semantic_tradeoff)",
    )
    options, rest = parser.parse_known_args(arguments)
    known = [name for name in METHODS if name not in FIRST_STAGES]
    if options.method not in known:
        parser.error(f"no method '{options.method}': known are {', '.join(known)}.{closest(options.method, known)}")
    if min(options.factors) < 0 or len(set(options.factors)) != len(options.factors):
        parser.error(f"--factors must be different numbers of 0 or more, got {options.factors}")
    if options.steps < 1:
        parser.error(f"--steps must be 1 or more, got {options.steps}")
    options.factors.sort()
    return options, override_pairs(rest, "losses", parser.error)


def _runs(options: Any, overrides: dict[str, Any]) -> list[SemanticRun]:
    base = recipe_of(METHODS[options.method])
    losses = yaml.safe_load(base.read_text(encoding="utf-8"))["losses"]
    settings = {"data.source.heldout_fraction": HELDOUT_FRACTION, **overrides}
    runs = []
    for factor in options.factors:
        folder = options.out / options.method / f"factor-{factor:g}"
        changed = {**settings, "losses": scaled(losses, factor)}
        run = build_run(f"× {factor:g}", None, {}, base=base, folder=folder, steps=options.steps, overrides=changed)
        runs.append(SemanticRun(run.name, None, run.recipe))
    return runs


def scaled(losses: Sequence[Mapping[str, Any]], factor: float) -> list[dict[str, Any]]:
    """Return the sections of losses with the weights of those that teach meaning multiplied.

    Raises:
        ConfigError: none does.
    """
    found = []
    for loss in losses:
        section = dict(loss)
        if section["type"] in SEMANTIC_LOSSES:
            section["weight"] = factor * section.get("weight", 1.0)
            if section.get("schedule"):
                schedule = dict(section["schedule"])
                schedule["final_weight"] = factor * schedule["final_weight"]
                section["schedule"] = schedule
        found.append(section)
    if not any(section["type"] in SEMANTIC_LOSSES for section in found):
        listed = ", ".join(str(section["type"]) for section in found)
        raise ConfigError(f"losses must hold one of {', '.join(sorted(SEMANTIC_LOSSES))}, got {listed}")
    return found


def with_factors(options: Any, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results with their `factor`, which is in their names."""
    factors = {f"× {factor:g}": factor for factor in options.factors}
    return [{**result, "factor": factors[result["name"]]} for result in results]


def _save(options: Any, results: Sequence[dict[str, Any]]) -> None:
    stem = options.out / options.method / "tradeoff"
    told = with_factors(options, results)
    save_text(json.dumps(told, indent=1) + "\n", stem.with_suffix(".json"))
    save_text(result_table(told) + "\n", stem.with_suffix(".md"))
    plot_tradeoff(options.method, told, stem.with_suffix(".png"))


def result_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as a markdown table."""
    names = ["factor", "PSNR dB", "text → image R@5", "kNN codes", "kNN tokens"]
    measures = ("text_to_image_r5_codes", "knn_accuracy_codes", "knn_accuracy_tokens")
    lines = [
        [
            f"{result['factor']:g}",
            f"{result['heldout']['psnr_db']:.2f}",
            *(f"{result['semantic'][measure]:.3f}" for measure in measures),
        ]
        for result in results
    ]
    return markdown_table(names, lines)


if __name__ == "__main__":
    raise SystemExit(main())
