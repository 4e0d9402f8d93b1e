"""Trainings whose tokens' meaning is measured too, on OpenMoji with a fifth of the pictures held out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.training_runs import EVALUATION_BATCH, Run, build_run
from visual_tokenizer import VisualTokenizer
from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.evaluation.meaning import MeasuredPictures, measure_semantics
from visual_tokenizer.evaluation.meaning_recipe import SemanticSection
from visual_tokenizer.outputs import ABSENT
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.semantics.base import SemanticData
from visual_tokenizer.semantics.knn import KNNConfig, nearest_classes
from visual_tokenizer.semantics.text_retrieval import TextRetrievalConfig, recalled

RECIPES = Path(__file__).parents[1] / "recipes" / "tokenizer"

BASELINES: Mapping[str, str] = {
    "baseline": "openmoji_semantic_baseline",
    "two_codebooks": "openmoji_semantic_baseline_two",
}
"""Reconstruction alone, with one and with two codebooks of 512 at each of 64 places; 16 channels a place both."""

METHODS: Mapping[str, str] = {
    **BASELINES,
    "vq_kd": "openmoji_vq_kd",
    "peco": "openmoji_peco",
    "clip_aligned": "openmoji_clip_aligned",
    "seed": "openmoji_seed",
    "tokenflow": "openmoji_tokenflow",
    "imagefolder": "openmoji_imagefolder_semantic",
    "fqgan": "openmoji_fqgan",
    "lavit": "openmoji_lavit",
}
"""Names as in the literature, and the recipes."""

TWO_CODEBOOKS = frozenset({"clip_aligned", "imagefolder", "fqgan"})
"""Methods with two indices a place, and so as many bits as the baseline of two codebooks."""

FIRST_STAGES: Mapping[str, str] = {"seed": "openmoji_seed_alignment"}
"""Recipes whose result another begins with; each of the two takes half of the steps."""

HELDOUT_FRACTION = 0.2
"""About 380 pictures: the standard error of a share of them is 2.5 % at most."""


class SemanticRun(Run):
    """A training on whose result `measure_semantics` is run."""

    def measured(self, final: Path, accelerator: Accelerator) -> dict[str, Any]:
        """Return what any run measures, the values of the meaning as `semantic`, and tokens as pictures have them."""
        section = SemanticSection()
        source = SourceConfig.family.build(self.recipe.data.source)
        pictures = MeasuredPictures(
            source, self.recipe.data, section.max_pictures, self.recipe.image_size, EVALUATION_BATCH
        )
        tokenizer = VisualTokenizer.from_pretrained(final).to(accelerator.device).eval()
        report = measure_semantics(tokenizer, pictures, section, accelerator)
        heldout = report.data.heldout.indices
        return {
            **super().measured(final, accelerator),
            "semantic": report.values,
            "semantic_protocol": report.protocol,
            "outcomes": outcomes(report.data),
            "tokens_per_picture": int((heldout != ABSENT).sum()) / len(heldout),
        }


def outcomes(data: SemanticData) -> dict[str, list[float]]:
    """Return what became of each held-out picture by the mean of its codes, so that methods compare picture by picture.

    `kNN` is 1 where the class was right, and `recall` the mean over ranks and directions of what was found.
    """
    classed = data.having(["labels"])
    wanted, owned = classed.class_numbers(classed.heldout), classed.class_numbers(classed.train)
    found = nearest_classes(classed.views["codes"], owned, KNNConfig().neighbours)
    captioned = data.having(["captions"])
    ranks = TextRetrievalConfig().ranks
    hits = recalled(captioned.views["codes"], captioned, ranks)
    return {
        "kNN": (found == wanted).double().tolist(),
        "recall": torch.cat(list(hits.values()), dim=1).mean(1).tolist(),
    }


class FirstStage(Run):
    """A training that another begins with; only its losses mean something, so nothing is measured."""

    def measured(self, final: Path, accelerator: Accelerator) -> dict[str, Any]:
        """Return nothing."""
        return {}


def baseline_of(name: str) -> str:
    """Return the baseline of a method's size."""
    return "two_codebooks" if name in TWO_CODEBOOKS else "baseline"


def method_runs(name: str, *, out: Path, steps: int, overrides: Mapping[str, Any]) -> list[Run]:
    """Return the run of a method, the last, behind that of its first stage where it has one.

    Args:
        name: of `METHODS`.
        out: folder of the runs.
        steps: optimiser steps, over both stages.
        overrides: further dotted keys of the recipes, alike for all.

    Raises:
        ConfigError: the recipe is not there, or a wrong key.
    """
    stages: list[Run] = []
    settings = {"data.source.heldout_fraction": HELDOUT_FRACTION, **overrides}
    if name in FIRST_STAGES:
        first = max(1, steps // 2)
        folder = out / f"{name}_first_stage"
        run = build_run(
            name, None, {}, base=recipe_of(FIRST_STAGES[name]), folder=folder, steps=first, overrides=settings
        )
        stages.append(FirstStage(f"{name}, first stage", None, run.recipe))
        settings = {**settings, "initialize_from": str(folder / "final")}
        steps = max(1, steps - first)
    folder = out / name
    run = build_run(name, None, {}, base=recipe_of(METHODS[name]), folder=folder, steps=steps, overrides=settings)
    return [*stages, SemanticRun(name, None, run.recipe)]


def recipe_of(name: str) -> Path:
    """Return the file of a recipe.

    Raises:
        ConfigError: there is none.
    """
    path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in RECIPES.glob("openmoji_*.yaml")))
        raise ConfigError(f"the recipe {path} is not there, leave its method out by --only; there are {there}")
    return path
