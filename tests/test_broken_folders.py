"""Any folder that a user gives to any program, broken in any way, ends in one line that says where and what.

A program's row names the folder that it is given; the ways to break that folder are the table's columns.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BeitConfig,
    BeitForMaskedImageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
)
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE
from typer.testing import CliRunner

import mmlm.data.tokenize
import mmlm.train
from mmlm.cli import app
from mmlm.merge import merge_vocabulary
from visual_tokenizer import (
    VisualTokenizer,
    VisualTokenizerConfig,
    VisualTokenizerImageProcessor,
    doctor,
    evaluate,
    features,
    palette,
    pretrain,
    probe,
    train,
)
from visual_tokenizer.convert import __main__ as convert

PATCHES = {"type": "patch", "patch_size": 8, "width": 8}
FSQ = {"type": "fsq", "levels": [4, 4]}
SIZE = 16
UNFINISHED = {"recipe.yaml", "run.lock", "log.jsonl"}
"""What a run that has not begun may leave in its folder."""


# --- folders as they should be


class Folders(NamedTuple):
    """Whole folders, made once; a test breaks a copy."""

    root: Path

    def __getattr__(self, name: str) -> Path:
        return self.root / name


def text_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and an end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: number for number, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def language_model(rows: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("whole")
    (root / "pictures").mkdir()
    lines = []
    for number in range(12):
        squares = np.random.default_rng(number).integers(0, 256, (2, 2, 3), dtype=np.uint8)
        picture = Image.fromarray(squares).resize((SIZE, SIZE), Image.Resampling.NEAREST)
        picture.save(root / f"pictures/{number:02}.png")
        lines.append(json.dumps({"file_name": f"{number:02}.png", "text": f"squares {number}"}))
    (root / "pictures/metadata.jsonl").write_text("\n".join(lines))
    source = {"type": "image_folder", "folder": str(root / "pictures"), "heldout_fraction": 0.3}

    config = VisualTokenizerConfig(image_size=SIZE, encoder=PATCHES, quantizer=FSQ, decoder=PATCHES)
    codec = VisualTokenizer(config).eval()
    tokenizer = text_tokenizer()
    rows = len(tokenizer)
    language_model(rows).save_pretrained(root / "lm")
    tokenizer.save_pretrained(root / "lm")

    codec.save_pretrained(root / "tokenizer")
    VisualTokenizerImageProcessor(size=SIZE).save_pretrained(root / "tokenizer")
    (root / "tokenizer/recipe.yaml").write_text(yaml.safe_dump({"data": {"source": source}}))
    protocol = {"split": "all", "source": source, "resize_filter": "lanczos", "image_size": SIZE, "pictures": 12}
    report = {"model": "/nowhere", "metrics": {"psnr_db": 20.0}, "protocol": protocol}
    (root / "tokenizer/evaluation-all.json").write_text(json.dumps(report))
    shutil.copytree(root / "tokenizer", root / "other")

    merged, processor = merge_vocabulary(language_model(rows), tokenizer, codec)
    merged.save_pretrained(root / "merged")
    processor.save_pretrained(root / "merged")

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    beit = BeitConfig(image_size=SIZE, patch_size=8, vocab_size=16, use_mask_token=True, **small)
    BeitForMaskedImageModeling(beit).save_pretrained(root / "pretrained")
    codec.save_pretrained(root / "pretrained/visual_tokenizer")
    fields = {"patch_size": 8, "hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 16}
    recipe = {"tokenizer": "x", "output_dir": "x", "image_size": SIZE, "model": fields, "data": {"source": source}}
    (root / "pretrained/recipe.yaml").write_text(yaml.safe_dump(recipe))

    ViTModel(ViTConfig(image_size=SIZE, patch_size=8, **small)).save_pretrained(root / "network")
    (root / "network/preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    )

    vq = JanusVQVAEConfig(
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
        embed_dim=8,
        latent_channels=16,
        num_embeddings=64,
        num_patches=8,
    )
    JanusVQVAE(vq).save_pretrained(root / "published")
    whole = Folders(root)
    assert mmlm.data.tokenize.main(lm_recipe(str(root / "merged"), str(root / "run"), whole)) == 0
    return whole


# --- ways to break one


Way = Callable[[Path, Folders], Path | None]


def weights_of(folder: Path) -> Path:
    return folder / "model.safetensors"


def change_weights(change: Callable[[dict[str, Any], str], None], name: str, folder: Path, _: Folders) -> None:
    weights = load_file(weights_of(folder))
    change(weights, next(key for key in sorted(weights) if re.search(name, key)))
    save_file(weights, weights_of(folder), metadata={"format": "pt"})


def missing_tensor(name: str = "weight") -> Way:
    return functools.partial(change_weights, lambda weights, key: weights.pop(key), name)


def other_shape(name: str = "weight") -> Way:
    def grow(weights: dict[str, Any], key: str) -> None:
        weights[key] = torch.cat([weights[key], weights[key]])

    return functools.partial(change_weights, grow, name)


def extra_tensor(folder: Path, _: Folders) -> None:
    weights = load_file(weights_of(folder))
    save_file({**weights, "nobody.weight": torch.zeros(2)}, weights_of(folder), metadata={"format": "pt"})


def change_json(file: str, change: Callable[[dict[str, Any]], Any], folder: Path, _: Folders) -> None:
    path = folder / file
    found = json.loads(path.read_text())
    path.write_text(json.dumps(change(found)))


def with_fields(file: str, **fields: Any) -> Way:
    return functools.partial(change_json, file, lambda found: {**found, **fields})


def syntax_error(file: str) -> Way:
    def cut(folder: Path, _: Folders) -> None:
        path = folder / file
        path.write_text(path.read_text()[:-3] + ",,")

    return cut


def text(file: str, content: str) -> Way:
    return lambda folder, _: (folder / file).write_text(content) and None


def without(*patterns: str) -> Way:
    def remove(folder: Path, _: Folders) -> None:
        for pattern in patterns:
            for path in list(folder.glob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def truncated(folder: Path, _: Folders) -> None:
    weights_of(folder).write_bytes(weights_of(folder).read_bytes()[:-8])


def zero_bytes(folder: Path, _: Folders) -> None:
    weights_of(folder).write_bytes(b"")


def file_in_place(folder: Path, _: Folders) -> Path:
    shutil.rmtree(folder)
    folder.write_text("a file")
    return folder


def replaced_by(name: str) -> Way:
    def replace(folder: Path, folders: Folders) -> None:
        shutil.rmtree(folder)
        shutil.copytree(getattr(folders, name), folder)

    return replace


def config_of(name: str) -> Way:
    return lambda folder, folders: shutil.copy(getattr(folders, name) / "config.json", folder / "config.json") and None


def within(subfolder: str, way: Way) -> Way:
    def apply(folder: Path, folders: Folders) -> None:
        way(folder / subfolder, folders)

    return apply


def no_permission(folder: Path, _: Folders) -> None:
    (folder / "config.json").chmod(0)


PATHS: dict[str, tuple[Way, str]] = {
    "absent": (lambda folder, _: folder.parent / "absent", "there is no"),
    "empty": (without("*"), ""),
    "a file": (file_in_place, ""),
}
CONFIG: dict[str, tuple[Way, str]] = {
    "syntax error in the config": (syntax_error("config.json"), r"config\.json is not JSON"),
    "the config is a list": (lambda folder, _: (folder / "config.json").write_text("[1]") and None, r"config\.json"),
    "the config may not be read": (no_permission, r"config\.json"),
}
WEIGHTS: dict[str, tuple[Way, str]] = {
    "config only": (without("*.safetensors"), "safetensors"),
    "truncated weights": (truncated, r"model\.safetensors"),
    "zero bytes": (zero_bytes, r"model\.safetensors"),
    "a tensor is missing": (
        missing_tensor(r"(proj|projection|embedding|to_codes)\.weight"),
        r"1 missing keys \(.*weight",
    ),
    "a tensor of another shape": (other_shape(), r"1 mismatched keys \(.*weight of shape \(.*by config\.json \("),
    "a tensor too many": (extra_tensor, r"1 unexpected keys \(nobody\.weight\)"),
}
MODEL = {
    **PATHS,
    **CONFIG,
    **WEIGHTS,
    "weights only": (without("*.json"), r"config\.json"),
    "a config of nothing that is known": (with_fields("config.json", model_type="abacus"), "abacus"),
}
TOKENIZER = {
    **MODEL,
    "an unknown key": (with_fields("config.json", colour="red"), "unknown key 'colour'"),
    "an unknown part": (with_fields("config.json", quantizer={"type": "abacus"}), "'abacus'"),
    "a wrong value": (with_fields("config.json", image_size=-1), "image_size"),
    "a language model": (replaced_by("lm"), "llama model"),
    "a merged model": (replaced_by("merged"), "llama model"),
    "the config of a language model": (config_of("lm"), "llama model"),
}
CAUSAL = {
    "a wrong value": (with_fields("config.json", hidden_size="wide"), "hidden_size"),
    "a visual tokenizer": (replaced_by("tokenizer"), ""),
    "the config of a visual tokenizer": (config_of("tokenizer"), "visual_tokenizer model"),
    "fewer layers than weights": (with_fields("config.json", num_hidden_layers=0), "unexpected keys"),
    "more layers than weights": (with_fields("config.json", num_hidden_layers=2), "missing keys"),
    "more rows than weights": (with_fields("config.json", vocab_size=2048), "mismatched keys"),
    "code of its own": (
        with_fields("config.json", model_type="abacus", auto_map={"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}),
        "code of its own",
    ),
}
TEXT = {
    "no text tokenizer": (without("tokenizer*", "special*"), "text tokenizer"),
    "syntax error in the text tokenizer": (syntax_error("tokenizer.json"), r"tokenizer\.json"),
    "no tokenizer.json": (without("tokenizer.json"), r"tokenizer"),
}
LANGUAGE_MODEL = {**MODEL, **CAUSAL, **TEXT}
PROCESSOR = {
    **PATHS,
    **TEXT,
    "an unmerged language model": (replaced_by("lm"), "is no merged model"),
    "a visual tokenizer": (replaced_by("tokenizer"), "is no merged model"),
    "no processor_config.json": (without("processor_config.json"), r"has no processor_config\.json"),
    "syntax error in the processor's": (syntax_error("processor_config.json"), r"processor_config\.json is not JSON"),
    "an unknown layout": (with_fields("processor_config.json", layout={"type": "abacus"}), "'abacus'"),
    "no vocabulary": (
        functools.partial(
            change_json, "processor_config.json", lambda found: {k: v for k, v in found.items() if k != "vocabulary"}
        ),
        "vocabulary",
    ),
    "a vocabulary of unknown keys": (with_fields("processor_config.json", vocabulary={"words": 3}), "words"),
    "a merge of unknown keys": (with_fields("processor_config.json", merge={"colour": 3}), "colour"),
    "no visual tokenizer": (without("visual_tokenizer"), "visual_tokenizer"),
    "no preprocessor_config.json": (
        within("visual_tokenizer", without("preprocessor_config.json")),
        r"visual_tokenizer.*preprocessor_config\.json",
    ),
    **{
        f"its visual tokenizer: {name}": (within("visual_tokenizer", way), f"visual_tokenizer.*{words}")
        for name, (way, words) in {**CONFIG, **WEIGHTS, "an unknown key": TOKENIZER["an unknown key"]}.items()
    },
}
MERGED = {
    **PROCESSOR,
    **{name: case for name, case in {**MODEL, **CAUSAL}.items() if name not in PROCESSOR and name != "weights only"},
    "the weights of the unmerged language model": (
        lambda folder, folders: (
            [shutil.copy(folders.lm / name, folder) for name in ("config.json", "model.safetensors")] and None
        ),
        "rows",
    ),
}


# --- programs


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


# --- the table


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave what libraries warn of off stderr, reach no network, and listen on no port."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: pytest.fail("it listens"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    transformers.logging.set_verbosity(level)
    transformers.logging.enable_progress_bar()


@pytest.mark.parametrize(
    ("program", "way"), [(program, way) for program, row in PROGRAMS.items() for way in row.ways], ids=str
)
def test_one_line_names_the_folder_and_what_is_wrong(
    program: str, way: str, folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = PROGRAMS[program]
    if "may not be read" in way and os.geteuid() == 0:
        pytest.skip("root may read everything")
    given, out = tmp_path / "given", tmp_path / "out"
    shutil.copytree(getattr(folders, row.given), given)
    given = row.ways[way][0](given, folders) or given
    code, stderr = row.run(row.words(str(given), str(out), folders), capsys)
    assert code == 2, stderr
    (line,) = stderr.splitlines()
    assert line.startswith(f"{row.name}: error: ")
    assert str(given) in line
    assert len(line) < 900
    assert re.search(row.ways[way][1], line), line
    left = {path.name for path in out.rglob("*") if path.is_file()}
    assert left <= UNFINISHED, left


@pytest.fixture(scope="module")
def run(folders: Folders) -> Path:
    """A training of two steps with a checkpoint of each, whose result was taken away."""
    folder = folders.root / "training"
    words = [f"--output_dir={folder}", *source(folders), *TOKENIZER_RECIPE]
    assert train.main([*words, "--training.max_steps=2", "--training.checkpoint_every_steps=1"]) == 0
    shutil.rmtree(folder / "final")
    return folder


def damage_all(*names: str) -> Callable[[Path], Any]:
    return lambda folder: [path.write_bytes(b"{") for name in names for path in folder.glob(f"checkpoints/*/{name}")]


def as_file(name: str) -> Callable[[Path], Any]:
    def replace(folder: Path) -> None:
        if name:
            shutil.rmtree(folder / name)
        else:
            shutil.rmtree(folder)
        (folder / name).write_text("a file")

    return replace


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_all("*"), r"checkpoints.*manifest\.json"),
        (damage_all("manifest.json"), r"checkpoints.*manifest\.json"),
        (damage_all("model.safetensors"), r"checkpoints.*model\.safetensors"),
        (damage_all("state.json"), r"checkpoints.*state\.json"),
        (as_file("checkpoints"), "checkpoints"),
        (as_file(""), ""),
        (lambda folder: [(folder / "log.jsonl").unlink(), (folder / "log.jsonl").mkdir()], "log"),
    ],
    ids=["all files", "manifests", "weights", "states", "a file as checkpoints", "a file", "a folder as the log"],
)
def test_a_run_that_cannot_go_on(
    damage: Callable[[Path], Any], words: str, run: Path, folders: Folders, tmp_path: Path, capsys: Any
) -> None:
    given = tmp_path / "given"
    shutil.copytree(run, given)
    damage(given)
    recipe = [f"--output_dir={given}", *source(folders), *TOKENIZER_RECIPE, "--training.max_steps=3"]
    code, stderr = in_process(train.main)(recipe, capsys)
    assert code == 2, stderr
    (line,) = stderr.splitlines()
    assert line.startswith("visual_tokenizer.train: error: ")
    assert str(given) in line
    assert re.search(words, line), line
    assert not (given / "final").exists()


def test_a_run_goes_on_without_what_it_writes_anew(run: Path, folders: Folders, tmp_path: Path) -> None:
    given = tmp_path / "given"
    shutil.copytree(run, given)
    (given / "recipe.yaml").write_text("data: [")
    log = (given / "log.jsonl").read_bytes()
    (given / "log.jsonl").write_bytes(b"\xff\xfe not text\n" + log + b'{"step": 2, "cut')
    (given / "run.lock").write_text("{")
    (given / "checkpoints/step-00000002/model.safetensors").write_bytes(b"")
    recipe = [f"--output_dir={given}", *source(folders), *TOKENIZER_RECIPE, "--training.max_steps=2"]
    assert train.main(recipe) == 0
    assert VisualTokenizer.from_pretrained(given / "final").config.image_size == SIZE
    assert {json.loads(line)["step"] for line in (given / "log.jsonl").read_text().splitlines()} == {1, 2}


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGUF" + bytes(60)], ids=["zero bytes", "cut short", "no numbers"])
def test_a_damaged_gguf_file(content: bytes, folders: Folders, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    code, stderr = typed(merge_words(file, folders.tokenizer, str(tmp_path / "out")), capsys)
    assert code == 2, stderr
    (line,) = stderr.splitlines()
    assert line.startswith("mmlm merge: error: ")
    assert "model.gguf" in line
    assert not (tmp_path / "out").exists()
