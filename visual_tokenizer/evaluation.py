"""How well a tokenizer reconstructs a set of pictures; shared by training and `visual_tokenizer.evaluate`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from visual_tokenizer.metrics.base import Metric, PictureMean
from visual_tokenizer.metrics.codebook_usage import CodebookUsage
from visual_tokenizer.metrics.feature_distance import FeatureDistance
from visual_tokenizer.metrics.perceptual_distance import PerceptualDistance
from visual_tokenizer.metrics.psnr import PSNR
from visual_tokenizer.metrics.ssim import SSIM
from visual_tokenizer.modeling import VisualTokenizer

METRICS: dict[str, Callable[[], Metric]] = {
    "psnr": PSNR,
    "ssim": SSIM,
    "perceptual_distance": PerceptualDistance,
    "feature_distance": FeatureDistance,
}


def bits_per_picture(tokenizer: VisualTokenizer, image_size: int) -> float:
    """Return log2 of the number of different token grids: what a square picture of that side costs at most."""
    tokens = math.prod(tokenizer.token_grid(image_size, image_size))
    return tokens * tokenizer.num_codebooks * math.log2(tokenizer.codebook_size)


@torch.no_grad()
def evaluate_reconstruction(
    tokenizer: VisualTokenizer,
    batches: Iterable[Mapping[str, Any]],
    metrics: Iterable[str],
    device: torch.device,
) -> dict[str, float]:
    """Reconstruct this process's batches in evaluation mode and return the metrics over all processes.

    Every process must call it, also one that has no batch. The codebook's usage is always among the results.

    Args:
        tokenizer: left in the mode it was in.
        batches: with `pixels` (B, 3, H, W) in [-1, 1]; together each picture once.
        metrics: names, keys of `METRICS`.
        device: where the tokenizer is.

    Raises:
        NoDataError: too few pictures over all processes.
    """
    usage = CodebookUsage(tokenizer.codebook_size, tokenizer.num_codebooks)
    chosen = [METRICS[name]() for name in metrics]
    was_training = tokenizer.training
    tokenizer.eval()
    try:
        for batch in batches:
            pixels = batch["pixels"].to(device)
            indices, reconstruction = reconstruct(tokenizer, pixels)
            usage.update(indices)
            for metric in chosen:
                _update(metric, pixels, reconstruction)
    finally:
        tokenizer.train(was_training)
    results: dict[str, float] = {}
    for metric in (*chosen, usage):
        results.update(metric.compute())
    return results


@torch.no_grad()
def reconstruct(tokenizer: VisualTokenizer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices (B, *token_grid[, num_codebooks]) and pixels (B, 3, H, W), by way of the indices alone."""
    indices = tokenizer.encode(pixels)
    return indices, tokenizer.decode(indices)


def _update(metric: Metric, pixels: Tensor, reconstruction: Tensor) -> None:
    if isinstance(metric, PictureMean):
        metric.update(pixels, reconstruction)
    elif isinstance(metric, FeatureDistance):
        metric.update(pixels, is_reference=True)
        metric.update(reconstruction, is_reference=False)
    else:
        raise TypeError(f"{type(metric).__name__} does not compare pairs of pictures")
