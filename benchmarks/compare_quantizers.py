"""Train one small tokenizer with each of many quantizers, everything else equal, and compare what they reach.

Network, data, steps, seed and optimiser are those of the base recipe for all; a picture costs the same number of bits.
Held-out pictures are reconstructed; the use of the codes is counted over the training set, each picture once.

  python -m benchmarks.compare_quantizers --set rate                    all kinds at 13 bits a token
  python -m benchmarks.compare_quantizers --set rate --bits 10 13       … at two rates: a rate-distortion plot
  python -m benchmarks.compare_quantizers --set collapse                8,192 explicit codes, one change at a time
  python -m benchmarks.compare_quantizers --set rate --only fsq lfq --steps 500 --out run/quick
  python -m benchmarks.compare_quantizers --set rate --training.batch_size 16    any key of the recipe, for all alike

Each set takes about 20 minutes on 2 CPU cores. Finished runs are not repeated; one that was interrupted goes on.
Exit codes: 0 done; 1 a run diverged; 2 usage or input error; 130, 143 interrupted.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.comparison_plots import PERCEPTUAL, plot_collapse, plot_rate
from benchmarks.quantizer_sets import BASELINE, SETS
from benchmarks.quantizers import markdown_table
from benchmarks.training_runs import Run, build_run, compare, override_pairs
from visual_tokenizer.registry import closest
from visual_tokenizer.runs.files import save_text

BASE = Path(__file__).parents[1] / "recipes" / "tokenizer" / "openmoji_cnn_vq.yaml"

PLOTS = {"rate": plot_rate, "collapse": plot_collapse}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and compare what the command line asks for; return the exit code."""
    options, overrides = _parse(arguments)

    def report(results: list[dict[str, Any]]) -> str:
        saved = ", ".join(str(options.out / f"{options.set}.{kind}") for kind in ("md", "json", "png"))
        return f"{result_table(options.set, results)}\n\nsaved {saved}"

    return compare(lambda: _runs(options, overrides), functools.partial(_save, options), report)


def _parse(arguments: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare_quantizers",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--set", choices=sorted(SETS), required=True)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these of the set; a wrong name lists all")
    parser.add_argument("--bits", nargs="+", type=int, default=[13], help="bits a token (13); several with --set rate")
    parser.add_argument("--steps", type=int, default=1500, help="optimiser steps of each run (1500)")
    parser.add_argument("--recipe", type=Path, default=BASE, help="the base recipe (openmoji_cnn_vq.yaml)")
    parser.add_argument(
        "--out", type=Path, default=Path("run/benchmarks"), help="folder of runs and results (run/benchmarks)"
    )
    options, rest = parser.parse_known_args(arguments)
    for name in options.only or []:
        known = list(SETS[options.set](options.bits[0], options.steps))
        if name not in known:
            parser.error(f"no quantizer '{name}' in {options.set}: known are {', '.join(known)}.{closest(name, known)}")
    if options.steps < 1 or min(options.bits) < 2:
        parser.error(f"--steps must be 1 or more and --bits 2 or more, got {options.steps} and {options.bits}")
    if options.set == "collapse" and len(options.bits) > 1:
        parser.error("--set collapse takes one number of --bits")
    overrides = override_pairs(rest, "quantizer", parser.error)
    return options, overrides


def _runs(options: Any, overrides: dict[str, Any]) -> list[Run]:
    runs = []
    for bits in options.bits:
        for name, section in SETS[options.set](bits, options.steps).items():
            if options.only is None or name in options.only:
                folder = options.out / options.set / f"{name}-{bits}-bits"
                settings: dict[str, Any] = {"base": options.recipe, "folder": folder, "overrides": overrides}
                runs.append(build_run(name, bits, {"quantizer": section}, steps=options.steps, **settings))
    return runs


def _save(options: Any, results: Sequence[dict[str, Any]]) -> None:
    out: Path = options.out
    save_text(json.dumps(results, indent=1) + "\n", out / f"{options.set}.json")
    save_text(result_table(options.set, results) + "\n", out / f"{options.set}.md")
    PLOTS[options.set](results, out / f"{options.set}.png")


def result_table(kind: str, results: Sequence[dict[str, Any]]) -> str:
    """Return the results as a markdown table; those of `collapse` beside the baseline's, where it is among them."""
    baseline = next((result for result in results if kind == "collapse" and result["name"] == BASELINE), None)
    names = [
        "quantizer",
        "bits/picture",
        "codes",
        "PSNR dB",
        "perceptual distance",
        "usage",
        "perplexity",
        "dead codes",
    ]
    names += ["images/s"] + (["usage ÷ baseline", "perplexity ÷ baseline"] if baseline else [])
    lines = []
    for result in results:
        heldout, train = result["heldout"], result["train"]
        several = f" × {result['num_codebooks']}" if result["num_codebooks"] > 1 else ""
        line = [
            result["name"],
            f"{result['bits_per_picture']:.0f}",
            f"{result['codebook_size']:,}{several}",
            f"{heldout['psnr_db']:.2f}",
            f"{heldout[PERCEPTUAL]:.3f}",
            f"{train['codebook_usage']:.1%}",
            f"{train['codebook_perplexity']:,.0f}",
            f"{train['codebook_dead']:,.0f}",
            f"{result['images_per_second']:.0f}",
        ]
        if baseline is not None:
            for name in ("codebook_usage", "codebook_perplexity"):
                line.append(f"{train[name] / baseline['train'][name]:.1f}")
        lines.append(line)
    return markdown_table(names, lines)


if __name__ == "__main__":
    raise SystemExit(main())
