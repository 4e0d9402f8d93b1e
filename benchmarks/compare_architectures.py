"""Train every architecture's small recipe for the same number of steps and compare what they reach.

Each keeps the network, quantizer, losses and learning rate of its own recipe in recipes/tokenizer; pictures (or
clips), their size, their number a step, the steps and the seed are the same for all. Held-out ones are reconstructed;
the use of the codes is counted over the training set, each once.

  python -m benchmarks.compare_architectures --steps 400                 pictures
  python -m benchmarks.compare_architectures --kind clips --steps 100    clips of 17 frames
  python -m benchmarks.compare_architectures --only vqgan vit --steps 2000 --out run/long
  python -m benchmarks.compare_architectures --training.batch_size 16        any key of the recipes, for all alike

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

from benchmarks.quantizers import markdown_table
from benchmarks.training_runs import Run, build_run, compare, override_pairs
from visual_tokenizer.registry import closest
from visual_tokenizer.runs.files import save_text

RECIPES = Path(__file__).parents[1] / "recipes" / "tokenizer"

ARCHITECTURES: Mapping[str, Mapping[str, str]] = {
    "pictures": {
        "vqvae": "openmoji_vqvae",
        "vqvae2": "openmoji_vqvae2",
        "dvae": "openmoji_dvae",
        "vqgan": "openmoji_cnn_vq",
        "rqvae": "openmoji_residual",
        "vit_vqgan": "openmoji_vit",
        "titok": "openmoji_latent_query",
        "perceiver": "openmoji_perceiver",
        "gigatok": "openmoji_q_former",
        "imagefolder": "openmoji_imagefolder",
    },
    "clips": {
        "videogpt": "moving_openmoji_vqvae_3d",
        "tats": "moving_openmoji_tats",
        "magvit2": "moving_openmoji_causal_cnn",
        "cogvideox": "moving_openmoji_cogvideox",
        "cosmos": "moving_openmoji_cosmos",
        "omnitokenizer": "moving_openmoji_omnitokenizer",
    },
}
"""By kind: names as in the literature, and the recipes."""

BATCH_SIZES = {"pictures": 8, "clips": 2}

PERCEPTUAL = "perceptual_efficientnet_lite0"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and compare what the command line asks for; return the exit code."""
    options, overrides = _parse(arguments)

    def report(results: list[dict[str, Any]]) -> str:
        return f"{result_table(results)}\n\nsaved {options.out / options.kind}.md and .json"

    return compare(lambda: _runs(options, overrides), functools.partial(_save, options), report)


def _parse(arguments: Sequence[str] | None) -> tuple[Any, dict[str, Any]]:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare_architectures",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--kind", choices=sorted(ARCHITECTURES), default="pictures")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="only these; a wrong name lists all")
    parser.add_argument("--steps", type=int, default=400, help="optimiser steps of each run (400)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("run/benchmarks/architectures"),
        help="folder of runs and results (run/benchmarks/architectures)",
    )
    options, rest = parser.parse_known_args(arguments)
    known = list(ARCHITECTURES[options.kind])
    for name in options.only or []:
        if name not in known:
            parser.error(
                f"no architecture '{name}' of {options.kind}: known are {', '.join(known)}.{closest(name, known)}"
            )
    if options.steps < 1:
        parser.error(f"--steps must be 1 or more, got {options.steps}")
    return options, override_pairs(rest, "encoder", parser.error)


def _runs(options: Any, overrides: dict[str, Any]) -> list[Run]:
    settings = {
        "training.batch_size": BATCH_SIZES[options.kind],
        "training.gradient_accumulation_steps": 1,
        **overrides,
    }
    return [
        build_run(
            name,
            None,
            {},
            base=RECIPES / f"{recipe}.yaml",
            folder=options.out / name,
            steps=options.steps,
            overrides=settings,
        )
        for name, recipe in ARCHITECTURES[options.kind].items()
        if options.only is None or name in options.only
    ]


def _save(options: Any, results: list[dict[str, Any]]) -> None:
    save_text(json.dumps(results, indent=1) + "\n", options.out / f"{options.kind}.json")
    save_text(result_table(results) + "\n", options.out / f"{options.kind}.md")


def result_table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as a markdown table."""
    names = ["architecture", "quantizer", "parameters", "tokens", "bits", "PSNR dB", "SSIM", "perceptual distance"]
    names += ["usage", "images/s"]
    lines = []
    for result in results:
        heldout, train = result["heldout"], result["train"]
        several = f" × {result['num_codebooks']}" if result["num_codebooks"] > 1 else ""
        lines.append(
            [
                result["name"],
                f"{result['recipe']['quantizer']['type']}, {result['codebook_size']:,}{several}",
                f"{result['parameters'] / 1e6:.1f} M",
                f"{result['tokens_per_picture']:,}",
                f"{result['bits_per_picture']:,.0f}",
                f"{heldout['psnr_db']:.2f}",
                f"{heldout['ssim']:.3f}",
                f"{heldout[PERCEPTUAL]:.3f}",
                f"{train['codebook_usage']:.1%}",
                f"{result['images_per_second']:.0f}",
            ]
        )
    return markdown_table(names, lines)


if __name__ == "__main__":
    raise SystemExit(main())
