"""Tensors out of folders, files, state dicts and modules. Nothing is unpickled but tensors and plain values."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from visual_tokenizer.errors import MissingFileError, UserError
from visual_tokenizer.runs.saved_models import read_json

TORCH_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")

_WRAPPERS = ("ema", "model", "state_dict")
"""Keys under which training programs keep the weights; averaged ones first."""

_BOOKKEEPING = ("pytorch_lightning", "lightning", "lightning_fabric", "omegaconf")
"""Packages whose objects Lightning writes beside the weights. They are read as empty shells, never imported."""


@dataclass
class PublishedWeights:
    """What was found: tensors by name and, where there is one, the config.json beside them."""

    tensors: Mapping[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    name: str = "the state dict"


def read_weights(source: Any) -> PublishedWeights:
    """Read a folder, a file, a state dict or a module.

    Args:
        source: a folder with `config.json` and safetensors or one torch file; a `.safetensors` file or a torch file
            (`.ckpt`, `.pt`, `.pth`, `.bin`); a mapping of names to tensors, possibly under `state_dict`, `model` or
            `ema`; or a module, whose `config` is looked at too.

    Raises:
        FileNotFoundError: there is no such folder or file, or no weights in the folder.
        UserError: the file holds pickled objects, or no tensors, or can't be read.
    """
    if isinstance(source, nn.Module):
        config: Any = getattr(source, "config", None)
        settings = config.to_dict() if hasattr(config, "to_dict") else {}
        return PublishedWeights(source.state_dict(), settings, type(source).__name__)
    if isinstance(source, Mapping):
        return PublishedWeights(_unwrapped(source, "the state dict"))
    if not isinstance(source, str | Path):
        raise UserError(f"weights must be a folder, a file, a state dict or a module, got {type(source).__name__}")
    path = Path(source).expanduser()
    if path.is_dir():
        settings = path / "config.json"
        return PublishedWeights(_read_folder(path), read_json(settings) if settings.is_file() else {}, str(path))
    if not path.is_file():
        raise MissingFileError(f"there is no folder or file '{path}', where published weights should be")
    return PublishedWeights(_read_file(path), {}, str(path))


def _read_folder(folder: Path) -> Mapping[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return SafetensorsFiles(files)
    files = sorted(path for path in folder.iterdir() if path.suffix in TORCH_SUFFIXES)
    shards = [path for path in files if "-of-" in path.name]
    if not files or (len(files) > 1 and files != shards):
        raise MissingFileError(
            f"'{folder}' must hold *.safetensors or one of *{', *'.join(TORCH_SUFFIXES)}, "
            f"found {', '.join(path.name for path in files) or 'none'}; name the file itself"
        )
    return {name: tensor for path in files for name, tensor in _read_file(path).items()}


def _read_file(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        return SafetensorsFiles([path])
    return _unwrapped(_load_torch(path), str(path))


class SafetensorsFiles(Mapping[str, Tensor]):
    """The tensors of several files, each read when it is asked for: a language model's other weights stay on disk."""

    def __init__(self, paths: list[Path]) -> None:
        self._files: dict[str, Any] = {}
        try:
            for path in paths:
                file = safe_open(path, framework="pt")
                self._files |= dict.fromkeys(file.keys(), file)
        except SafetensorError as error:
            raise UserError(f"'{path}' is not a safetensors file: {error}") from error

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class Shell:
    """Stands for an object of a training program: keeps nothing, does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)


def _load_torch(path: Path) -> Any:
    try:
        shells: list[Any] = [
            (Shell, name)
            for name in torch.serialization.get_unsafe_globals_in_checkpoint(path)
            if name.partition(".")[0] in _BOOKKEEPING
        ]
    except (ValueError, RuntimeError, pickle.UnpicklingError):
        shells = []  # the format before zip files, or none: loading says which
    try:
        with torch.serialization.safe_globals(shells):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        cause = str(error)
        unsafe = cause.partition("GLOBAL ")[2].split()[:1] or cause.partition("class ")[2].split()[:1]
        raise UserError(
            f"'{path}' holds pickled objects{f' ({unsafe[0]})' if unsafe else ''}, not only tensors. Loading them "
            "could run any code, so it is not done. Where you trust the file, write its tensors with the program it "
            "comes from: `safetensors.torch.save_file(torch.load(FILE, weights_only=False).state_dict(), "
            "'weights.safetensors')` (of a Lightning checkpoint, `['state_dict']`), and give that file instead."
        ) from error
    except Exception as error:  # of a file that is none of torch's: whatever its first bytes lead to
        raise UserError(f"'{path}' can't be read as a torch file: {error}") from error


def _unwrapped(found: Any, where: str) -> dict[str, Tensor]:
    """Return the tensors of a state dict, or of the one that a training checkpoint holds."""
    while isinstance(found, Mapping) and not any(isinstance(value, Tensor) for value in found.values()):
        inner = next((found[key] for key in _WRAPPERS if isinstance(found.get(key), Mapping) and found[key]), None)
        if inner is None:
            break
        found = inner
    tensors = (
        {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
        if isinstance(found, Mapping)
        else {}
    )
    if not tensors:
        raise UserError(f"{where} holds no tensors, nor {', '.join(_WRAPPERS)} that do")
    return tensors


EMA = "model_ema."


def with_averages(tensors: Mapping[str, Tensor], head: str = "") -> dict[str, Tensor]:
    """Return the weights, each replaced by its average under `model_ema.` if there is one; the averages are left out.

    `head` stands before all names.
    """
    averages = f"{head}{EMA}"
    return {
        name: tensors.get(averages + name.removeprefix(head).replace(".", ""), tensors[name])
        for name in tensors
        if not name.startswith(averages)
    }
