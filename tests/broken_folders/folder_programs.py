"""Programs that take a folder: which one, and their other arguments."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner
from ways_to_break import (
    CAUSAL,
    CONFIG,
    LANGUAGE_MODEL,
    MERGED,
    MODEL,
    PATHS,
    PROCESSOR,
    TOKENIZER,
    WEIGHTS,
    Way,
    config_of,
    missing_tensor,
    other_shape,
    replaced_by,
    syntax_error,
    text,
    truncated,
    with_fields,
    within,
    without,
)
from whole_folders import FSQ, PATCHES, SIZE, Folders

import mmlm.data.tokenize
import mmlm.train
from mmlm.cli import app
from visual_tokenizer import doctor, evaluate, features, palette, pretrain, probe, train
from visual_tokenizer.convert import __main__ as convert


def in_process(main: Callable[[Sequence[str]], int]) -> Callable[..., tuple[int, str]]:
    def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
        capsys.readouterr()
        code = main(words)
        return code, capsys.readouterr().err

    return run


def typed(words: list[str], _: pytest.CaptureFixture[str]) -> tuple[int, str]:
    result = CliRunner().invoke(app, words)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


class Program(NamedTuple):
    """A program and what it is given."""

    name: str
    """As its error lines begin."""
    given: str
    """Which folder."""
    ways: dict[str, tuple[Way, str]]
    words: Callable[[str, str, Folders], list[str]]
    """Arguments from the broken folder, the output folder and the whole folders."""
    run: Callable[..., tuple[int, str]] = typed


def only(ways: dict[str, tuple[Way, str]], *but: str) -> dict[str, tuple[Way, str]]:
    return {name: case for name, case in ways.items() if name not in but}


def source(folders: Folders, at: str = "data.source") -> list[str]:
    return [f"--{at}.type=image_folder", f"--{at}.folder={folders.pictures}", f"--{at}.heldout_fraction=0.3"]


def lm_recipe(model: str, out: str, folders: Folders) -> list[str]:
    return [
        f"--model={model}",
        f"--output_dir={out}",
        *source(folders),
        f"--data.shards_dir={folders.shards}",
        "--training.max_steps=1",
        "--training.batch_size=2",
        "--training.evaluate_every_steps=0",
    ]


def merge_words(language_model: str | Path, visual_tokenizer: str | Path, out: str) -> list[str]:
    given = {"language-model": language_model, "visual-tokenizer": visual_tokenizer, "output": f"{out}/merged"}
    return ["merge", *(f"--{name}={value}" for name, value in given.items())]


def plan_words(model: str, out: str, folders: Folders) -> list[str]:
    recipe = folders.root / "lm_recipe.yaml"
    if not recipe.exists():
        recipe.write_text("{}")
    return ["plan", "--config", str(recipe), "--devices=1", *lm_recipe(model, out, folders)]


TOKENIZER_RECIPE = [
    f"--image_size={SIZE}",
    f"--encoder={json.dumps(PATCHES)}",
    f"--quantizer={json.dumps(FSQ)}",
    f"--decoder={json.dumps(PATCHES)}",
    "--losses=[{type: l2}]",
    "--training.max_steps=1",
    "--training.batch_size=4",
    "--training.evaluate_every_steps=0",
    "--training.sample_every_steps=0",
    "--training.log_every_steps=1",
]

PROGRAMS = {
    "train --initialize_from": Program(
        "visual_tokenizer.train",
        "tokenizer",
        TOKENIZER,
        lambda given, out, f: [f"--initialize_from={given}", f"--output_dir={out}", *source(f), *TOKENIZER_RECIPE],
        in_process(train.main),
    ),
    "evaluate": Program(
        "visual_tokenizer.evaluate",
        "tokenizer",
        {
            **TOKENIZER,
            "syntax error in recipe.yaml": (text("recipe.yaml", "data: ["), r"recipe\.yaml is not YAML"),
            "an unknown key in recipe.yaml": (text("recipe.yaml", "data: {colour: red}"), r"recipe\.yaml.*'colour'"),
            "no section in recipe.yaml": (text("recipe.yaml", "data: 3"), r"recipe\.yaml.*data must be"),
        },
        lambda given, out, f: [f"--model={given}", f"--output={out}/report.json", "--metrics=[psnr]"],
        in_process(evaluate.main),
    ),
    "evaluate --compare": Program(
        "visual_tokenizer.evaluate",
        "tokenizer",
        {
            **only(TOKENIZER, "weights only", "a language model", "a merged model", "the config may not be read"),
            "no report": (without("evaluation-all.json"), "evaluation"),
            "syntax error in the report": (syntax_error("evaluation-all.json"), r"evaluation-all\.json is not JSON"),
            "a report of something else": (
                with_fields("evaluation-all.json", metrics=[1]),
                r"evaluation-all\.json is not a report",
            ),
        },
        lambda given, out, f: [f"--compare=[{given}, {f.other}]", f"--output={out}"],
        in_process(evaluate.main),
    ),
    "doctor": Program(
        "visual_tokenizer.doctor",
        "tokenizer",
        TOKENIZER,
        lambda given, out, f: [f"--model={given}", f"--output={out}"],
        in_process(doctor.main),
    ),
    "pretrain": Program(
        "visual_tokenizer.pretrain",
        "tokenizer",
        TOKENIZER,
        lambda given, out, f: [f"--tokenizer={given}", f"--output_dir={out}", f"--image_size={SIZE}", *source(f)],
        in_process(pretrain.main),
    ),
    "probe": Program(
        "visual_tokenizer.probe",
        "pretrained",
        {
            **only(MODEL, "weights only"),
            "a visual tokenizer": (replaced_by("tokenizer"), ""),
            "the config of a visual tokenizer": (config_of("tokenizer"), "visual_tokenizer model"),
            "no visual tokenizer": (without("visual_tokenizer"), "visual_tokenizer"),
            "its visual tokenizer is damaged": (within("visual_tokenizer", truncated), "visual_tokenizer.*damaged"),
            "no recipe.yaml": (without("recipe.yaml"), r"recipe\.yaml"),
            "syntax error in recipe.yaml": (text("recipe.yaml", "data: ["), r"recipe\.yaml is not YAML"),
        },
        lambda given, out, f: [f"--model={given}", f"--output={out}/probe.json", "--label_column=null"],
        in_process(probe.main),
    ),
    "features": Program(
        "visual_tokenizer.features",
        "network",
        {
            **only(MODEL, "a tensor too many"),
            "no preprocessor_config.json": (without("preprocessor_config.json"), r"preprocessor_config\.json"),
            "syntax error in the preprocessor's": (
                syntax_error("preprocessor_config.json"),
                r"preprocessor_config\.json",
            ),
        },
        lambda given, out, f: [
            "--backbone=transformers_vision",
            f"--weights={given}",
            f"--output={out}/features.safetensors",
            *source(f),
        ],
        in_process(features.main),
    ),
    "palette": Program(
        "visual_tokenizer.palette",
        "pictures",
        PATHS,
        lambda given, out, f: [
            f"--output={out}",
            "--data.source.type=image_folder",
            f"--data.source.folder={given}",
            "--colours=2",
        ],
        in_process(palette.main),
    ),
    "convert": Program(
        "visual_tokenizer.convert",
        "published",
        {
            **PATHS,
            **only(WEIGHTS, "a tensor is missing", "a tensor of another shape", "a tensor too many"),
            **only(CONFIG, "the config may not be read"),
            "another model": (replaced_by("lm"), "janus"),
            "a tensor is missing": (missing_tensor("mid"), "mid"),
            "a tensor of another shape": (other_shape("mid"), ""),
            "the first tensor is missing": (missing_tensor("encoder.conv_in.weight"), ""),
            "no codebook": (missing_tensor("embed"), "embed"),
        },
        lambda given, out, f: ["--source=janus", f"--input={given}", f"--output={out}"],
        in_process(convert.main),
    ),
    "mmlm.train": Program("mmlm.train", "merged", MERGED, lm_recipe, in_process(mmlm.train.main)),
    "mmlm.data.tokenize": Program(
        "mmlm.data.tokenize", "merged", PROCESSOR, lm_recipe, in_process(mmlm.data.tokenize.main)
    ),
    "mmlm merge --language-model": Program(
        "mmlm merge",
        "lm",
        LANGUAGE_MODEL,
        lambda given, out, f: merge_words(given, f.tokenizer, out),
    ),
    "mmlm merge --visual-tokenizer": Program(
        "mmlm merge",
        "tokenizer",
        {
            **TOKENIZER,
            "syntax error in the preprocessor's": (
                syntax_error("preprocessor_config.json"),
                r"preprocessor_config\.json",
            ),
        },
        lambda given, out, f: merge_words(f.lm, given, out),
    ),
    "mmlm strip": Program(
        "mmlm strip", "merged", MERGED, lambda given, out, f: ["strip", "--model", given, "--output", f"{out}/text"]
    ),
    "mmlm plan": Program(
        "mmlm plan",
        "merged",
        {
            **PATHS,
            **CONFIG,
            **{name: case for name, case in CAUSAL.items() if "weights" not in name},
        },
        plan_words,
    ),
    "mmlm generate": Program(
        "mmlm generate",
        "merged",
        MERGED,
        lambda given, out, f: ["generate", "--model", given, "--prompt", "a", "--output", f"{out}/drawn.png"],
    ),
    "mmlm describe": Program(
        "mmlm describe",
        "merged",
        MERGED,
        lambda given, out, f: ["describe", "--model", given, "--image", str(f.pictures / "00.png")],
    ),
    "mmlm answer": Program(
        "mmlm answer",
        "merged",
        MERGED,
        lambda given, out, f: ["answer", "--model", given, "--prompt", "a", "--output", f"{out}/answer"],
    ),
    "mmlm evaluate": Program(
        "mmlm evaluate",
        "merged",
        MERGED,
        lambda given, out, f: ["evaluate", "--model", given, "--output", out, *source(f, "data")],
    ),
    "mmlm serve": Program(
        "mmlm serve", "merged", MERGED, lambda given, out, f: ["serve", "--model", given, "--no-page"]
    ),
}
