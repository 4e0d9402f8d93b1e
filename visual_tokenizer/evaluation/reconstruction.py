"""How well a tokenizer reconstructs a set of pictures or clips; shared by training and `visual_tokenizer.evaluate`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visual_tokenizer.errors import UserError
from visual_tokenizer.metrics.base import Metric, MetricConfig
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.outputs import ABSENT
from visual_tokenizer.registry import ConfigError

USAGE = "codebook_usage"
"""The metric that is always measured."""


@dataclass(frozen=True)
class Measurement:
    """What `measure_reconstruction` found."""

    values: dict[str, float]
    """The metrics' results by name."""
    pictures: int
    """Pictures, or clips, over all processes."""
    tokens: int
    """Indices a picture or clip, those of all codebooks together; the mean, rounded down, where lengths differ."""
    pixels: int
    """Pixels a picture, over all frames of a clip."""
    protocol: list[dict[str, Any]]
    """What each metric measured, and how; see `Metric.protocol`."""


class _Amount(Metric):
    """How many pictures there were, and how large they and their token grids are."""

    def __init__(self) -> None:
        names = ("pictures", "tokens", "pixels")
        super().__init__(MetricConfig(), {name: torch.zeros((), dtype=torch.int64) for name in names})

    def observe(self, pixels: Tensor, reconstruction: Tensor, indices: Tensor) -> None:
        area = pixels.numel() // pixels.shape[1]
        self.add(
            pictures=torch.tensor(len(pixels)),
            tokens=(indices != ABSENT).sum(),
            pixels=torch.tensor(area),
        )

    def compute(self) -> dict[str, float]:
        sums = {name: int(value) for name, value in self.reduced_sums().items()}
        count = sums["pictures"]
        if not count:
            raise UserError("no process saw a picture")
        return {"pictures": count, "tokens": sums["tokens"] // count, "pixels": sums["pixels"] // count}


def build_metrics(
    entries: Iterable[str | Mapping[str, Any] | MetricConfig], codebook_size: int, num_codebooks: int
) -> list[Metric]:
    """Build a recipe's metrics, names or mappings of `type` and fields, and the codebook's usage if it is not there."""
    configs = MetricConfig.family.configs(entries, "metrics", is_repeatable=True)
    if USAGE not in [config.type for config in configs]:
        configs.append(MetricConfig.family.config({"type": USAGE}))
    return [MetricConfig.family.build(config.for_codebook(codebook_size, num_codebooks)) for config in configs]


def bits_per_picture(tokenizer: VisualTokenizer, image_size: int) -> float:
    """Return log2 of the number of token grids of a square picture or clip of that side: what it costs at most."""
    tokens = math.prod(tokenizer.token_grid(image_size, image_size)) * tokenizer.num_codebooks
    return token_bits(tokenizer, tokens)


def token_bits(tokenizer: VisualTokenizer, tokens: int) -> float:
    """Return what `tokens` indices cost at most, in bits."""
    return tokens * math.log2(tokenizer.codebook_size)


def evaluate_reconstruction(
    tokenizer: VisualTokenizer,
    batches: Iterable[Mapping[str, Any]],
    metrics: Iterable[str | Mapping[str, Any] | MetricConfig],
    device: torch.device,
) -> dict[str, float]:
    """Return the values of `measure_reconstruction`."""
    return measure_reconstruction(tokenizer, batches, metrics, device).values


@torch.no_grad()
def measure_reconstruction(
    tokenizer: VisualTokenizer,
    batches: Iterable[Mapping[str, Any]],
    metrics: Iterable[str | Mapping[str, Any] | MetricConfig],
    device: torch.device,
) -> Measurement:
    """Reconstruct this process's batches in evaluation mode and return the metrics over all processes.

    Every process must call it, also one that has no batch. The codebook's usage is always among the results.

    Args:
        tokenizer: left in the mode it was in.
        batches: with `pixels` (B, 3, H, W) or (B, 3, T, H, W) in [-1, 1]; together each picture once.
        metrics: names, or mappings of `type` and fields.
        device: where the tokenizer is.

    Raises:
        ConfigError: no such metric, or two that give a value of the same name.
        UserError: too few pictures over all processes.
    """
    chosen = build_metrics(metrics, tokenizer.codebook_size, tokenizer.num_codebooks)
    amount = _Amount()
    was_training = tokenizer.training
    tokenizer.eval()
    try:
        for batch in batches:
            pixels = batch["pixels"].to(device)
            indices, reconstruction = reconstruct(tokenizer, pixels)
            for metric in (amount, *chosen):
                metric.observe(pixels, reconstruction, indices)
    finally:
        tokenizer.train(was_training)
    values: dict[str, float] = {}
    for metric in chosen:
        results = metric.compute()
        if twice := sorted(values.keys() & results.keys()):
            raise ConfigError(f"metrics must give each value once, got {', '.join(twice)} twice")
        values.update(results)
    counts = {name: int(value) for name, value in amount.compute().items()}
    return Measurement(values=values, protocol=[metric.protocol() for metric in chosen], **counts)


@torch.no_grad()
def reconstruct(tokenizer: VisualTokenizer, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Return indices (B, *token_grid[, num_codebooks]) and pixels like the given, by way of the indices alone."""
    indices = tokenizer.encode(pixels)
    return indices, tokenizer.decode(indices)
