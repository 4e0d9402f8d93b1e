"""Files of weights: where they are, what they must hold, and what tells one from another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from visual_tokenizer.errors import MissingWeightsError, UserError
from visual_tokenizer.runs.files import file_sha256


def find_weights(weights: str | Path | None, file_names: Sequence[str], what: str) -> Path:
    """Return the path of a state dict: `weights`, or one of `file_names` in the folder of torch.hub.

    Args:
        weights: path that the user named.
        file_names: names under which the weights are published, the usual one first.
        what: what the file must be, for the messages.

    Raises:
        MissingWeightsError: there is no such file; the message says where to put it.
    """
    if weights is not None:
        if not Path(weights).is_file():
            raise MissingWeightsError(f"weights: no file {str(weights)!r}; it must be {what}")
        return Path(weights)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in file_names:
        if (folder / name).is_file():
            return folder / name
    raise MissingWeightsError(
        f"the weights are missing: {what}; give its path as `weights`, or put it at {folder / file_names[0]}"
    )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict onto the CPU; nothing is unpickled but tensors.

    Raises:
        UserError: the file holds something else.
    """
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: a state dict (name → tensor) is needed, got {type(state).__name__}")
    return state


def load_weights(network: nn.Module, path: Path, what: str, prefix: str = "") -> str:
    """Fill `network`, built on the meta device, from a state dict, freeze it, and return the file's digest.

    The file may hold more than the network needs (a classifier), but no less. BatchNorm's counters, which old
    files lack, mean nothing here.

    Args:
        network: takes the tensors themselves, in float32.
        path: file of the state dict.
        what: what the file must be, for the message.
        prefix: what the file's keys have before the network's.

    Raises:
        UserError: a key is missing or a shape differs.
    """
    state = read_state_dict(path)
    found: dict[str, Tensor] = {}
    wrong: list[str] = []
    for key, wanted in network.state_dict().items():
        value = state.get(prefix + key)
        if value is None and key.endswith("num_batches_tracked"):
            value = torch.zeros((), dtype=torch.int64)
        if value is None:
            wrong.append(f"lacks {prefix + key}")
        elif value.shape != wanted.shape:
            wrong.append(f"has {prefix + key} of shape {tuple(value.shape)}, not {tuple(wanted.shape)}")
        else:
            found[key] = value.float() if value.is_floating_point() else value
    if wrong:
        raise UserError(f"{path} is not {what}: it {', '.join(wrong[:3])} ({len(wrong)} faults in all)")
    network.load_state_dict(found, strict=True, assign=True)
    network.requires_grad_(False)
    network.eval()
    return file_digest(path)


def file_digest(path: Path) -> str:
    """Return the first 16 hexadecimal digits of the file's SHA-256."""
    return file_sha256(path)[:16]
