"""Trainings that are compared, and what is measured on each, kept in `result.json` of its folder."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from visual_tokenizer import VisualTokenizer
from visual_tokenizer.data.batches import PictureSet
from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.errors import DivergedError, exit_on_user_error
from visual_tokenizer.evaluation.reconstruction import bits_per_picture, evaluate_reconstruction
from visual_tokenizer.metrics.codebook_usage import CodebookUsage, CodebookUsageConfig
from visual_tokenizer.recipe import provenance, read_recipe, recipe_to_dict
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.files import save_text
from visual_tokenizer.training.recipe import TokenizerRecipe
from visual_tokenizer.training.trainer import TokenizerTrainer

METRICS = ("psnr", "ssim", "perceptual_distance")

EVALUATION_BATCH = 32

TRAINING_CLIPS = 200


@dataclass(frozen=True)
class Run:
    """One training."""

    name: str
    bits: int | None
    """Bits a token, where runs at several rates are compared."""
    recipe: TokenizerRecipe

    @property
    def label(self) -> str:
        """What it is called while it is at work."""
        return self.name if self.bits is None else f"{self.name}, {self.bits} bits a token"

    @property
    def folder(self) -> Path:
        """Where the run and its result are."""
        return Path(self.recipe.output_dir)

    def result(self) -> dict[str, Any] | None:
        """Return the result of an earlier run in the folder, if there is one.

        Raises:
            ConfigError: it is that of another recipe.
        """
        path = self.folder / "result.json"
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found["recipe"] != _plain(self.recipe):
            raise ConfigError(f"{path} is of another recipe: choose another --out, or remove that folder")
        return found

    def finish(self) -> dict[str, Any]:
        """Train, or go on with a training that was interrupted, then measure.

        Raises:
            Interrupted, DivergedError, ...: what `TokenizerTrainer.train` raises.
        """
        trainer = TokenizerTrainer(self.recipe)
        final = trainer.train()
        speeds = [line["images_per_second"] for line in trainer.log.read() if "images_per_second" in line]
        result = {
            "name": self.name,
            "bits": self.bits,
            "steps": self.recipe.training.max_steps,
            "images_per_second": statistics.median(speeds[1:] or speeds),  # the first holds the start
            **self.measured(final, trainer.accelerator),
            "recipe": _plain(self.recipe),
            **provenance(),
        }
        save_text(json.dumps(result, indent=1) + "\n", self.folder / "result.json")
        return result

    def measured(self, final: Path, accelerator: Accelerator) -> dict[str, Any]:
        """Return what is measured on the trained tokenizer in `final`."""
        return measure(final, self.recipe, accelerator.device)


def finish_runs(
    runs: Sequence[Run], save: Callable[[list[dict[str, Any]]], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Do what is not done yet.

    Args:
        runs: in the order of the results.
        save: called with all results so far after each run.

    Returns:
        The results, and the names of the runs that diverged.
    """
    results: list[dict[str, Any]] = []
    diverged: list[str] = []
    known = [run.result() for run in runs]  # all, before any is trained: one may be of another recipe
    waiting, begin = known.count(None), time.perf_counter()
    for number, (run, result) in enumerate(zip(runs, known, strict=True), start=1):
        label = f"[{number}/{len(runs)}] {run.label}"
        if result is None:
            print(f"{label}: {run.recipe.training.max_steps} steps", flush=True)
            try:
                result = run.finish()
            except DivergedError as error:
                print(f"{label}: {error}", file=sys.stderr)
                diverged.append(run.name)
            waiting -= 1
            done = known.count(None) - waiting
            minutes = (time.perf_counter() - begin) / done * waiting / 60
            print(f"{label}: done, about {minutes:.0f} minutes to go", flush=True)
        else:
            print(f"{label}: was done before", flush=True)
        if result is not None:
            results.append(result)
            save(results)
    return results, diverged


def compare(
    build: Callable[[], Sequence[Run]],
    save: Callable[[list[dict[str, Any]]], None],
    report: Callable[[list[dict[str, Any]]], str],
) -> int:
    """Do the runs of a program that compares, print what it reports, and return its exit code.

    Args:
        build: gives the runs, or raises what a user got wrong.
        save: called with all results so far after each run.
        report: what is printed of all results.
    """
    try:
        with exit_on_user_error("benchmarks"):
            results, diverged = finish_runs(build(), save)
    except SystemExit as end:
        return int(end.code or 0)
    if results:
        print("\n" + report(results))
    for name in diverged:
        print(f"error: {name} diverged", file=sys.stderr)
    return int(bool(diverged))


def build_run(
    name: str,
    bits: int | None,
    sections: Mapping[str, Any],
    *,
    base: Path,
    folder: Path,
    steps: int,
    overrides: Mapping[str, Any],
) -> Run:
    """Return the run of a base recipe with some sections replaced, and of another length.

    Args:
        name: of what is compared.
        bits: a token, or None.
        sections: by name, such as `quantizer`; they replace those of the recipe.
        base: the recipe of everything else.
        folder: of the run.
        steps: optimiser steps.
        overrides: further dotted keys of the recipe, alike for all runs.

    Raises:
        ConfigError: an unknown key or a wrong value.
    """
    settings = {
        "output_dir": str(folder),
        **{section: dict(fields) for section, fields in sections.items()},
        "training.max_steps": steps,
        "training.log_every_steps": max(1, steps // 20),
        "training.sample_every_steps": 0,
        "training.evaluate_every_steps": 0,
        "training.checkpoint_every_steps": 0,
        "training.keep_checkpoints": 1,
        # Codes that are reseeded jump, so that an average over steps would measure codes that never were.
        "training.ema_decay": 0.0,
        "optimizer.warmup_steps": min(100, steps // 10),
        **overrides,
    }
    return Run(name, bits, read_recipe(TokenizerRecipe, base, settings))


def override_pairs(words: Sequence[str], refused: str, complain: Callable[[str], Any]) -> dict[str, Any]:
    """Read `--section.field VALUE …` off what is left of a command line.

    Args:
        words: keys and values in turn.
        refused: a section that may not be named.
        complain: called with what is wrong; it must not return.
    """
    overrides = {}
    for key, value in zip(words[::2], words[1::2], strict=False):
        if not key.startswith("--") or "." not in key or key.startswith(f"--{refused}."):
            complain(f"unknown option {key}; keys of the recipe are given as --section.field VALUE")
        overrides[key[2:]] = yaml.safe_load(value)
    if len(words) % 2:
        complain(f"{words[-1]} needs a value")
    return overrides


def measure(model: Path, recipe: TokenizerRecipe, device: torch.device) -> dict[str, Any]:
    """Return how well the tokenizer in `model` reconstructs held-out pictures, and its codes' use on the training set.

    Pictures, or clips. Those of the training set are centre-cropped and not flipped, each once; of clips, which take a
    second each, no more than `TRAINING_CLIPS`.
    """
    tokenizer = VisualTokenizer.from_pretrained(model).to(device).eval()
    source = SourceConfig.family.build(recipe.data.source)

    def pictures(split: str) -> PictureSet:
        most = TRAINING_CLIPS if recipe.num_frames and split == "train" else None
        return PictureSet(source, split, recipe.data, image_size=recipe.image_size, max_pictures=most)

    heldout = evaluate_reconstruction(tokenizer, pictures("heldout").batches(EVALUATION_BATCH), METRICS, device)
    usage = CodebookUsage(CodebookUsageConfig().for_codebook(tokenizer.codebook_size, tokenizer.num_codebooks))
    for batch in pictures("train").batches(EVALUATION_BATCH):
        pixels = batch["pixels"].to(device)
        usage.observe(pixels, pixels, tokenizer.encode(pixels))
    return {
        "heldout": heldout,
        "train": usage.compute(),
        "codebook_size": tokenizer.codebook_size,
        "num_codebooks": tokenizer.num_codebooks,
        "code_dim": tokenizer.quantizer.code_dim,
        "tokens_per_picture": math.prod(tokenizer.token_grid()) * tokenizer.num_codebooks,
        "bits_per_picture": bits_per_picture(tokenizer, recipe.image_size),
        "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
    }


def _plain(recipe: TokenizerRecipe) -> dict[str, Any]:
    """Return everything that the result depends on, as JSON gives it back."""
    values = {name: value for name, value in recipe_to_dict(recipe).items() if name not in ("output_dir", "smoke")}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain
