"""Folders and hub names of models: what is read from one is whole, or refused in one line that says what is wrong."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from visual_tokenizer.errors import MissingFileError, UserError
from visual_tokenizer.runs.files import require_folder

CONFIG = "config.json"
PROCESSOR = "processor_config.json"
PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = "*.safetensors"
MODEL_FILES = (CONFIG, WEIGHTS)
FAULTS = ("missing_keys", "unexpected_keys", "mismatched_keys")
"""What transformers says of weights that are not those of the config."""
FAULTS_OF_A_PART = ("missing_keys", "mismatched_keys")
"""The same, where a checkpoint may hold more than the model that is made of it (a head)."""

_JSON_FILES = (
    CONFIG,
    PROCESSOR,
    PREPROCESSOR,
    "model.safetensors.index.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "adapter_config.json",
)
_TOKENIZER_FILES = ("tokenizer.json", "tekken.json")
_SHOWN = 3
_LONGEST_REASON = 300


class CheckpointMismatchError(UserError):
    """Weights that don't fit the architecture of the config."""


@contextmanager
def loading(
    name: object, what: str, needs: Iterable[str] = (), *, subfolder: str = "", model_type: str | None = None
) -> Iterator[None]:
    """Refuse in one line that names the folder, and the file in it, whatever a broken folder makes a library raise.

    Args:
        name: folder, or name on the hub.
        what: what is loaded, for the message.
        needs: names or patterns of files; which one lacks is looked for when loading has failed.
        subfolder: of `name`.
        model_type: that `config.json` must name.

    Raises:
        UserError: it can't be loaded; a MissingFileError where a file is missing or can't be read.
    """
    require_folder(name, f"a {what}")
    place = os.path.join(str(name), subfolder) if subfolder else str(name)
    if subfolder and os.path.isdir(str(name)):
        require_folder(Path(place), f"a {what}")
    folder = Path(place)
    _require_kind(folder, what, model_type)
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except UserError as error:
        if place not in str(error):
            error.args = (f"no {what} at '{place}': {error}",)
        raise
    except Exception as error:  # what a library raises is its own affair; tokenizers raises bare ones
        absent = next((file for file in needs if folder.is_dir() and not any(folder.glob(file))), None)
        fault = f"it has no {absent}" if absent else _fault(folder) or _reason(error, folder)
        kind = MissingFileError if absent or isinstance(error, OSError) else UserError
        raise kind(f"no {what} at '{place}': {fault}") from error


def load_whole(
    load: Callable[..., Any],
    name: Any,
    what: str,
    *,
    subfolder: str = "",
    model_type: str | None = None,
    refused: Iterable[str] = FAULTS,
    dispensable: str | None = None,
    **options: Any,
) -> tuple[Any, dict[str, Any]]:
    """Return a model and transformers' account of its loading; no weight is left at random.

    Args:
        load: a class's `from_pretrained`.
        name, what, subfolder, model_type: see `loading`.
        refused: which of `FAULTS` are; what transformers itself lists as tied or to be ignored is none.
        dispensable: part of the names of weights that may be missing.
        **options: of `from_pretrained`; weights are read from safetensors only, or from a `gguf_file`.

    Raises:
        CheckpointMismatchError: weights are missing, unexpected or of another shape; they are named.
    """
    options |= {"subfolder": subfolder} if subfolder else {}
    options |= {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    needs = () if "gguf_file" in options else MODEL_FILES
    with loading(name, what, needs, subfolder=subfolder, model_type=model_type), _without_report():
        model, info = load(name, **options)
    wrong = {kind: sorted(_named(item) for item in info.get(kind) or ()) for kind in refused}
    if dispensable is not None and "missing_keys" in wrong:
        wrong["missing_keys"] = [key for key in wrong["missing_keys"] if dispensable not in key]
    listed = "; ".join(f"{len(keys)} {kind.replace('_', ' ')} ({_few(keys)})" for kind, keys in wrong.items() if keys)
    if listed:
        raise CheckpointMismatchError(
            f"{os.path.join(str(name), subfolder) if subfolder else name}: the weights belong to another architecture "
            f"than config.json describes: {listed}. Use the config.json saved beside these weights."
        )
    return model, info


def load_text_tokenizer(
    name: Any, what: str = "text tokenizer", *, subfolder: str = "", **options: Any
) -> PreTrainedTokenizerBase:
    """Return a folder's or repository's text tokenizer; no code of its own is run."""
    options = {"subfolder": subfolder, **options, "trust_remote_code": False}
    with loading(name, what, subfolder=subfolder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **options)
        if "gguf_file" not in options:
            require_vocabulary(tokenizer, Path(str(name), subfolder))
    return tokenizer


def require_vocabulary(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raise MissingFileError where `folder` holds none of the files of a tokenizer's vocabulary.

    transformers then makes an empty vocabulary, and says nothing.
    """
    files = [*_TOKENIZER_FILES, *tokenizer.vocab_files_names.values()]
    if folder.is_dir() and tokenizer.vocab_files_names and not any((folder / file).is_file() for file in files):
        raise MissingFileError(f"no text tokenizer at '{folder}': it has none of {', '.join(dict.fromkeys(files))}")


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file; UserError where it holds something else."""
    if fault := _json_fault(path):
        raise UserError(f"{path.parent}/{fault}")
    return json.loads(path.read_bytes())


def _json_fault(path: Path) -> str | None:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:  # a JSONDecodeError, or no text at all
        return f"{path.name} is not JSON: {error}"
    except OSError as error:
        return f"{path.name} can't be read: {error.strerror}"
    return None if isinstance(found, dict) else f"{path.name} must hold a mapping, got {type(found).__name__}"


def _require_kind(folder: Path, what: str, model_type: str | None) -> None:
    """Refuse a folder that holds a model of another type than `model_type`, whose own class would not see it."""
    config = folder / CONFIG
    if model_type is None or not config.is_file() or _json_fault(config):
        return
    found = json.loads(config.read_bytes()).get("model_type", model_type)
    if found != model_type:
        raise UserError(f"no {what} at '{folder}': its {CONFIG} is that of a {found} model")


def _fault(folder: Path) -> str | None:
    """Return what is wrong with the files of a local folder; None where nothing is seen."""
    for name in _JSON_FILES:
        if (folder / name).is_file() and (fault := _json_fault(folder / name)):
            return fault
    for path in sorted(folder.glob(WEIGHTS)):
        try:
            with safe_open(path, framework="pt"):
                pass
        except Exception as error:
            return f"{path.name} ({path.stat().st_size} bytes) is damaged: {error}"
    return None


def _reason(error: Exception, folder: Path) -> str:
    """Return what a library says, in one short line."""
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return (
            f"its {CONFIG} asks for code of its own (auto_map), and none is run here: take a model that transformers "
            "has a class for, or convert it to one with the program it comes from"
        )
    if text.startswith("Unrecognized configuration class") and (folder / CONFIG).is_file():
        return f"its {CONFIG} is that of a {json.loads((folder / CONFIG).read_bytes()).get('model_type')} model"
    kind = "" if isinstance(error, (OSError, ValueError, RuntimeError)) else f"{type(error).__name__}: "
    return f"{kind}{text[:_LONGEST_REASON]}{'…' if len(text) > _LONGEST_REASON else ''}"


def _named(item: Any) -> str:
    """Return the name of a weight that transformers reports, with both shapes where they differ."""
    if isinstance(item, str):
        return item
    name, found, wanted = item
    return f"{name} of shape {tuple(found)}, by config.json {tuple(wanted)}"


def _few(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + ("…" if len(names) > _SHOWN else "")


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers' table of keys off stderr: what matters of it is the error's line."""

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
