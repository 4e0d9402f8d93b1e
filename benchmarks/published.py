"""The quantizers of vector-quantize-pytorch, given the codebook and settings of one of this project.

So that both do the same work: straight-through where ours is straight-through, one decay, no replacement of dead codes,
the same losses. The package is imported when a counterpart is built, because only the benchmark needs it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def published_vq(ours: Any, **settings: Any) -> nn.Module:
    """Return a VectorQuantize that holds the codebook of a VQ, or those of the parts of a composition."""
    from vector_quantize_pytorch import VectorQuantize

    settings = {"decay": 0.99, "commitment_weight": 0.25, "rotation_trick": False} | settings
    settings = {"threshold_ema_dead_code": 0, "codebook_size": ours.codebook_size} | settings
    module = VectorQuantize(dim=ours.code_dim, **settings)
    tables = [part.codebook.detach() for part in getattr(ours, "parts", [ours])]
    _set_codebook(module, torch.stack(tables))
    return module


def _set_codebook(module: Any, tables: Tensor) -> None:
    codebook = module._codebook
    codebook.embed.data.copy_(tables)
    codebook.embed_avg.data.copy_(tables)  # its counts are 1, as those of our EMA at the start


def published_gradient_vq(ours: Any) -> nn.Module:
    """Return a VectorQuantize whose codes learn by the loss, commitment and codebook loss weighed alike."""
    return published_vq(ours, learnable_codebook=True, ema_update=False)


def published_simvq(ours: Any) -> nn.Module:
    """Return a SimVQ with the frozen table and the matrix of ours."""
    from vector_quantize_pytorch import SimVQ

    module = SimVQ(ours.code_dim, ours.codebook_size, rotation_trick=False, input_to_quantize_commit_loss_weight=0.25)
    module.frozen_codebook.copy_(ours.codebook.detach())
    module.code_transform.weight.data.copy_(ours.parametrization.linear.weight.detach())
    return module


def published_residual(ours: Any) -> nn.Module:
    """Return a ResidualVQ with the codebooks of our levels."""
    from vector_quantize_pytorch import ResidualVQ

    module = ResidualVQ(
        dim=ours.code_dim,
        num_quantizers=ours.num_codebooks,
        codebook_size=ours.codebook_size,
        decay=0.99,
        commitment_weight=0.25,
        rotation_trick=False,
        threshold_ema_dead_code=0,
    )
    for layer, part in zip(module.layers, ours.parts, strict=True):
        _set_codebook(layer, part.codebook.detach()[None])
    return module


def published_product(ours: Any) -> nn.Module:
    """Return a VectorQuantize with a head and a codebook for each of our groups."""
    groups = len(ours.parts)
    return published_vq(ours, heads=groups, codebook_dim=ours.code_dim // groups, separate_codebook_per_head=True)


def published_lfq(ours: Any, spherical: bool = False) -> nn.Module:
    """Return an LFQ with entropies at its inverse temperature of 100; `spherical` is BSQ."""
    from vector_quantize_pytorch import LFQ

    return LFQ(
        codebook_size=ours.codebook_size,
        entropy_loss_weight=0.1,
        diversity_gamma=1.0,
        commitment_loss_weight=ours.config.commitment_weight,
        spherical=spherical,
    )


def published_fsq(ours: Any) -> nn.Module:
    """Return an FSQ of the same levels."""
    from vector_quantize_pytorch import FSQ

    return FSQ(levels=ours.config.levels)
