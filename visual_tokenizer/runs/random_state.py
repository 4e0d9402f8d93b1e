"""The state of a process's random generators as tensors, for checkpoints without pickle."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of Python's, numpy's and torch's generators, each a uint8 vector."""
    name, keys, *position = np.random.get_state()
    state = {
        "python": _to_bytes(random.getstate()),
        "numpy": _to_bytes([name, np.asarray(keys).tolist(), *position]),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Bring the generators back to what `random_state` returned."""
    version, words, gauss = _from_bytes(state["python"])
    random.setstate((version, tuple(words), gauss))
    name, keys, *position = _from_bytes(state["numpy"])
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *position))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def _to_bytes(value: object) -> Tensor:
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _from_bytes(value: Tensor) -> list:
    return json.loads(bytes(value.tolist()))
