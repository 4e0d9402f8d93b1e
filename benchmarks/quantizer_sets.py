"""The quantizers that `benchmarks.compare_quantizers` trains: what stands in a recipe's section `quantizer`.

`rate`: every kind of quantizer at the same number of bits a token, each with the settings that suit it. `collapse`: one
explicit codebook that is trained as the first VQGAN's was, and then one thing changed at a time.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

Section = dict[str, Any]

BASELINE = "baseline"
"""The member of `collapse` that the others differ from."""

WIDTH = 32
"""Channels of a code where the method does not ask for few."""

FEW = 8
"""Channels of a factorised code, as in ViT-VQGAN and LlamaGen."""


def fsq_levels(bits: int) -> list[int]:
    """Return the levels whose product is nearest to 2^bits from below; 5 to 8 each, of which few bits have no choice.

    With fewer than 5 levels a channel loses quality, says the paper (arXiv:2309.15505, section 4.1).
    """
    size = 2**bits
    least = 5 if size >= 5**2 else 2
    lists = (
        levels
        for channels in range(1, 2 + int(math.log(size, least)))
        for levels in itertools.combinations_with_replacement(range(8, least - 1, -1), channels)
    )
    return list(max((levels for levels in lists if math.prod(levels) <= size), key=math.prod))


def _healthy(codebook_size: int, code_dim: int, **fields: Any) -> Section:
    """Return a VQ that stays in use: k-means start, moving averages, dead codes moved to hard examples."""
    return {
        "type": "vq",
        "codebook_size": codebook_size,
        "code_dim": code_dim,
        "update": {"type": "ema", "decay": 0.99},
        "initializer": {"type": "kmeans", "samples": max(256, min(65536, 8 * codebook_size))},
        # Often, because a step's 256 tokens replace no more than 256 codes.
        "reseeder": {"type": "hard_example", "usage_below": 0.3, "every_steps": 10},
        **fields,
    }


def rate_set(bits: int, steps: int) -> dict[str, Section]:
    """Return all kinds of quantizers at `bits` bits a token.

    Args:
        bits: 2 or more.
        steps: length of the training, over which temperatures fall.
    """
    size = 2**bits
    half = math.floor(2 ** (bits / 2) + 1e-6)
    gradient = {"type": "gradient"}
    return {
        "vq": _healthy(size, FEW),
        "cosine_vq": _healthy(size, FEW, normalize=True),
        "rotation": _healthy(size, FEW, normalize=True, estimator={"type": "rotation"}),
        "simvq": {
            "type": "vq",
            "codebook_size": size,
            "code_dim": WIDTH,
            "update": gradient,
            "parametrization": {"type": "simvq"},
        },
        "ibq": _index_backpropagation(size),
        "gumbel": {
            "type": "gumbel",
            "codebook_size": size,
            "code_dim": WIDTH,
            "anneal_steps": steps,
            "kl_warmup_steps": steps // 10,
        },
        "fsq": {"type": "fsq", "levels": fsq_levels(bits)},
        "lfq": {"type": "lfq", "codebook_size": size},
        "bsq": {"type": "bsq", "codebook_size": size},
        "product": {"type": "product", "groups": 2, "base": _healthy(half, FEW, normalize=True)},
        "residual": {"type": "residual", "depth": 2, "base": _healthy(half, FEW)},
    }


def _index_backpropagation(codebook_size: int) -> Section:
    return {
        "type": "vq",
        "codebook_size": codebook_size,
        "code_dim": WIDTH,
        "loss_weighting": "legacy",
        "estimator": {"type": "index_backpropagation"},
        "update": {"type": "gradient"},
        # A short training wants a higher temperature than the authors' 0.01: at that, p is one-hot from the first step.
        "regularizers": [{"type": "entropy", "similarity": "dot", "weight": 0.1, "temperature": 0.05}],
    }


def collapse_set(bits: int, steps: int) -> dict[str, Section]:
    """Return the baseline and what differs from it by one method each, all with 2^bits explicit codes.

    Args:
        bits: 2 or more.
        steps: length of the training, on which nothing here depends.
    """
    size = 2**bits
    baseline = {
        "type": "vq",
        "codebook_size": size,
        "code_dim": WIDTH,
        "commitment_weight": 0.25,
        "update": {"type": "gradient"},
        "initializer": {"type": "random", "distribution": "uniform"},
    }
    healthy = _healthy(size, WIDTH)
    often = {"usage_below": 0.3, "every_steps": 10}
    gaussian = {"type": "random", "distribution": "normal"}
    changes: dict[str, Section] = {
        BASELINE: {},
        "kmeans_hard_example": {"initializer": healthy["initializer"], "reseeder": healthy["reseeder"]},
        "reservoir": {"reseeder": {"type": "reservoir", **often}},
        "kmeans_hard_example_cosine": {**healthy, "normalize": True, "code_dim": FEW},
        # Entropies need codes of a known scale; the sphere gives it.
        "entropy": {
            "normalize": True,
            "initializer": gaussian,
            "regularizers": [{"type": "entropy", "weight": 0.2, "temperature": 0.03}],
        },
        # A run of 500 steps is short for the usual 0.99, a memory of 100 steps, with which it uses fewer codes.
        "ema": {"update": {"type": "ema", "decay": 0.8}},
        "ema_kmeans": {"update": {"type": "ema", "decay": 0.99}, "initializer": healthy["initializer"]},
        "rotation": {"estimator": {"type": "rotation"}},
        "ibq": _index_backpropagation(size) | {"initializer": gaussian},
        # Its frozen table is Gaussian by definition.
        "simvq": {"parametrization": {"type": "simvq"}, "initializer": gaussian},
        "cosine_low_dimensional": {"normalize": True, "code_dim": FEW},
    }
    return {name: copy.deepcopy({**baseline, **change}) for name, change in changes.items()}


SETS: Mapping[str, Callable[[int, int], dict[str, Section]]] = {"rate": rate_set, "collapse": collapse_set}
"""By name: bits a token and training steps → sections by name."""
