"""Ways to break a folder, by its kind: each with words that the error line must hold (a regular expression)."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from whole_folders import Folders

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
    "an unmerged language model": (replaced_by("lm"), "is not a merged model"),
    "a visual tokenizer": (replaced_by("tokenizer"), "is not a merged model"),
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
