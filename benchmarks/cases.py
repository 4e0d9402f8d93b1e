"""What `benchmarks.quantizers` measures: quantizers of this project and the nearest that others published.

Both sides are given the same codebook and settings, so that they do the same work: straight-through where ours is
straight-through, one decay, no replacement of dead codes, the same losses. What cannot be alike is said in the case's
`differs`. vector-quantize-pytorch is the independent side; it has no index backpropagation, whose textbook formula is
in `dense_ibq.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.dense_ibq import DenseIBQ
from benchmarks.published import (
    published_fsq,
    published_gradient_vq,
    published_lfq,
    published_product,
    published_residual,
    published_simvq,
    published_vq,
)
from visual_tokenizer import Quantizer, build_quantizer

Read = Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]
"""Latents (B, N, C) → codes (B, N, C), indices, and the sum of the losses, None where there is none."""

PUBLISHED = "vector-quantize-pytorch"


@dataclass(frozen=True)
class Case:
    """One quantizer and its counterpart."""

    name: str
    about: str
    ours: Callable[[], Quantizer]
    theirs: Callable[[Any], nn.Module] | None = None
    """Builds the other side, given ours, whose codebook it copies; None where there is none."""
    theirs_name: str = PUBLISHED
    searches: tuple[tuple[int, int], ...] = ()
    """K and C of each search among codes; none where the code is not searched for."""
    scale: float | None = None
    """Standard deviation of the latents; None: C^-½, so that they have about unit length, as the codes."""
    differs: str = ""
    """In what the two sides do not do the same."""

    @property
    def code_dim(self) -> int:
        """Channels of a latent."""
        with torch.device("meta"):  # no memory, because that is what is measured later
            return self.ours().code_dim

    @property
    def needs_published(self) -> bool:
        """Whether the other side is vector-quantize-pytorch."""
        return self.theirs is not None and self.theirs_name == PUBLISHED


def read_ours(quantizer: Quantizer, latents: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize by this project."""
    output = quantizer(latents)
    losses = list(output.losses.values())
    return output.codes, output.indices, torch.stack(losses).sum() if losses else None


def read_theirs(module: nn.Module, latents: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Quantize by a module that returns codes, indices and losses, if it has any."""
    codes, indices, *losses = module(latents)
    return codes, indices, losses[0].sum() if losses else None


def build_side(case: Case, side: str, device: torch.device) -> tuple[nn.Module, Read]:
    """Return the module of `side` (ours, theirs) in training mode, with codes that depend on nothing but the case."""
    torch.manual_seed(0)
    quantizer = case.ours()
    if side == "ours":
        return quantizer.to(device).train(), functools.partial(read_ours, quantizer)
    if case.theirs is None:
        raise ValueError(f"case '{case.name}' has no other side")
    module = case.theirs(quantizer)
    return module.to(device).train(), functools.partial(read_theirs, module)


def _vq(**fields: Any) -> Callable[[], Quantizer]:
    return functools.partial(build_quantizer, "vq", **fields)


_SMALL_VQ = {"type": "vq", "codebook_size": 1024, "code_dim": 64}
_GRADIENT = {"type": "gradient"}
_IBQ = {
    "estimator": {"type": "index_backpropagation"},
    "update": _GRADIENT,
    "loss_weighting": "legacy",
}

CASES = (
    Case(
        "vq_ema",
        "VQ by moving averages, K = 8,192, C = 64",
        _vq(codebook_size=8192, code_dim=64),
        published_vq,
        searches=((8192, 64),),
    ),
    Case(
        "cosine_vq",
        "cosine VQ by moving averages, K = 16,384, C = 8",
        _vq(codebook_size=16384, code_dim=8, normalize=True),
        functools.partial(published_vq, use_cosine_sim=True),
        searches=((16384, 8),),
    ),
    Case(
        "gradient_vq",
        "VQ by gradient, K = 8,192, C = 64",
        _vq(codebook_size=8192, code_dim=64, update={"type": "gradient", "weight": 0.25}),
        published_gradient_vq,
        searches=((8192, 64),),
    ),
    Case(
        "rotation",
        "VQ by moving averages with the rotation trick, K = 8,192, C = 64",
        _vq(codebook_size=8192, code_dim=64, estimator={"type": "rotation"}),
        functools.partial(published_vq, rotation_trick=True),
        searches=((8192, 64),),
    ),
    Case(
        "simvq",
        "SimVQ, K = 8,192, C = 64",
        _vq(codebook_size=8192, code_dim=64, update=_GRADIENT, parametrization={"type": "simvq", "bias": False}),
        published_simvq,
        searches=((8192, 64),),
    ),
    Case(
        "lfq",
        "LFQ with entropies, K = 4,096",
        functools.partial(build_quantizer, "lfq", codebook_size=2**12),
        published_lfq,
        scale=1.0,
        differs="theirs clamps probabilities at 1e-5 inside the logarithm",
    ),
    Case(
        "residual",
        "residual VQ by moving averages, 4 levels of K = 1,024, C = 64",
        functools.partial(build_quantizer, "residual", depth=4, base=_SMALL_VQ),
        published_residual,
        searches=((1024, 64),) * 4,
        differs="theirs passes the sum of the levels' gradients, ours their mean",
    ),
    Case(
        "product",
        "product VQ by moving averages, 4 groups of K = 1,024, C = 16",
        functools.partial(build_quantizer, "product", groups=4, base={**_SMALL_VQ, "code_dim": 16}),
        published_product,
        searches=((1024, 16),) * 4,
    ),
    Case(
        "fsq",
        "FSQ, levels 8 · 8 · 8 · 5 · 5",
        functools.partial(build_quantizer, "fsq", levels=[8, 8, 8, 5, 5]),
        published_fsq,
        scale=1.0,
        differs="ours measures perplexity and usage of the batch as well",
    ),
    Case(
        "bsq",
        "BSQ with entropies, K = 4,096",
        functools.partial(
            build_quantizer, "bsq", codebook_size=2**12, inverse_temperature=100.0, entropy_group_bits=12
        ),
        functools.partial(published_lfq, spherical=True),
        scale=1.0,
        differs="theirs clamps probabilities at 1e-5 inside the logarithm",
    ),
    Case(
        "ibq",
        "index backpropagation, K = 16,384, C = 64",
        _vq(codebook_size=16384, code_dim=64, **_IBQ),
        DenseIBQ,
        "textbook formula with tokens × codes in memory",
        searches=((16384, 64),),
    ),
)
"""What is compared with published code, at 8,192 tokens."""

LARGE_CASES = (
    Case(
        "lfq",
        "LFQ with entropies, K = 262,144",
        functools.partial(build_quantizer, "lfq", codebook_size=2**18),
        scale=1.0,
    ),
    Case(
        "bsq",
        "BSQ with entropies in groups of 9 bits, K = 262,144",
        functools.partial(build_quantizer, "bsq", codebook_size=2**18),
        scale=1.0,
    ),
    Case(
        "bsq_exact",
        "BSQ with the exact entropy of the batch, K = 262,144",
        functools.partial(build_quantizer, "bsq", codebook_size=2**18, entropy_group_bits=18),
        scale=1.0,
    ),
    Case(
        "cosine_vq",
        "cosine VQ by moving averages, K = 262,144, C = 8",
        _vq(codebook_size=2**18, code_dim=8, normalize=True),
        searches=((2**18, 8),),
    ),
    Case(
        "vq_ema",
        "VQ by moving averages, K = 262,144, C = 64",
        _vq(codebook_size=2**18, code_dim=64),
        searches=((2**18, 64),),
    ),
    Case(
        "ibq",
        "index backpropagation, K = 262,144, C = 256",
        _vq(codebook_size=2**18, code_dim=256, **_IBQ),
        searches=((2**18, 256),),
    ),
    Case(
        "ibq_entropy",
        "index backpropagation with its entropy term, K = 262,144, C = 256",
        _vq(
            codebook_size=2**18,
            code_dim=256,
            **_IBQ,
            regularizers=[{"type": "entropy", "similarity": "dot", "weight": 0.05}],
        ),
        searches=((2**18, 256),),
    ),
)
"""Training steps with 2^18 codes, of this project alone."""
