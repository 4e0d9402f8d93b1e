"""How far the drawings as a set are from pictures as a set: Fréchet distance in the embedding of a frozen network.

Protocol: the reference is the first `reference_pictures` of the split that have captions, brought to the size that the
model draws. Three sets of equally many pictures of the same captions are compared with it: the drawings, the visual
tokenizer's reconstructions of the originals, and the originals themselves. The last is what the distance is at this
number of pictures where nothing is wrong: a Fréchet distance of few pictures is large whatever they show, so read the
three together, and compare values only at equal numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any

import torch
from annotated_types import Ge, Len
from torch import Tensor

from mmlm.measures.base import Findings, Measure, MeasureConfig, Subject
from mmlm.scores.picture_bank import PICTURES_AT_A_TIME
from visual_tokenizer.metrics.base import FrechetMetric, MetricConfig, kernel_distance, round_pixels
from visual_tokenizer.registry import ConfigError


@dataclass(kw_only=True)
class FeatureDistanceConfig(MeasureConfig):
    """Configures the distance between sets."""

    metrics: Annotated[list[Any], Len(1)] = field(default_factory=lambda: ["feature_distance"])
    """Fréchet distances of `visual_tokenizer.metrics`, names or sections: feature_distance (EfficientNet-Lite0 or any
    other network), fid where the weights of Inception are there."""
    reference_pictures: Annotated[int, Ge(2)] = 2048
    """Pictures of the reference; fewer where the split has not so many."""
    kernel: bool = False
    """Whether the unbiased kernel distance (KID, with Inception) is measured too; pictures are embedded once more."""


class FeatureDistance(Measure):
    """Fréchet distance of drawings, reconstructions and originals from a reference of pictures; 0 is best.

    Raises:
        ConfigError: a metric that is no Fréchet distance of pictures.
        MissingWeightsError: the weights of a metric's network are not on this machine.
    """

    Config = FeatureDistanceConfig

    def measure(self, subject: Subject) -> Findings:
        metrics = [_build(entry) for entry in self.config.metrics]
        kernels: list[Tensor] = [torch.zeros(0) for _ in metrics]
        references = 0
        for pixels in _reference(subject, self.config.reference_pictures):
            references += len(pixels)
            for place, metric in enumerate(metrics):
                metric.update(pixels, is_reference=True)
                if self.config.kernel:
                    kernels[place] = torch.cat([kernels[place], _embed(metric, pixels)])
        starts = [dict(metric.sums) for metric in metrics]
        values: dict[str, Any] = {
            "reference_pictures": references,
            "metrics": [metric.protocol() for metric in metrics],
        }
        rows = []
        for split in subject.splits:
            values[split] = {}
            for name, images in subject.compared(split).items():
                parts = subject.pixels(images)
                found: dict[str, float] = {"pictures": len(images)}
                for metric, start, kernel in zip(metrics, starts, kernels, strict=True):
                    metric.sums = dict(start)
                    for part in parts:
                        metric.update(part, is_reference=False)
                    found[metric.name] = metric.compute()[metric.name]
                    if self.config.kernel:
                        embeddings = torch.cat([_embed(metric, part) for part in parts])
                        found[f"kernel-{metric.name}"] = kernel_distance(embeddings, kernel)
                values[split][name] = found
                told = "   ".join(f"{key} {value:.4g}" for key, value in found.items() if key != "pictures")
                rows.append((f"{name}, {split}, n = {len(images)}", told))
        return Findings(values, rows)


def _build(entry: Any) -> FrechetMetric:
    section = {"type": entry} if isinstance(entry, str) else entry
    try:
        metric = MetricConfig.family.build(section)
    except KeyError as error:
        raise ConfigError(f"metrics: {error}") from error
    if not isinstance(metric, FrechetMetric) or metric.network.takes_clips:
        raise ConfigError(f"metrics must hold Fréchet distances of pictures (feature_distance, fid), got {entry!r}")
    return metric


def _reference(subject: Subject, count: int) -> Iterator[Tensor]:
    samples = islice(subject.samples(subject.split), count)
    while batch := list(islice(samples, PICTURES_AT_A_TIME)):
        yield from subject.pixels([sample["image"] for sample in batch])


@torch.no_grad()
def _embed(metric: FrechetMetric, pixels: Tensor) -> Tensor:
    with torch.autocast(pixels.device.type, enabled=False):
        return metric.network.embedding(round_pixels(pixels)).double().cpu()
