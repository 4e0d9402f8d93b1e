"""Pictures of `benchmarks.compare_quantizers`: quality at a rate, and the use of the codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.quantizer_sets import BASELINE

PERCEPTUAL = "perceptual_efficientnet_lite0"
MARKERS = "osD^vP*X<>ph"
DOTS_PER_INCH = 120


def plot_rate(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the quality on held-out pictures: over the rate, or quantizer by quantizer where there is one rate."""
    panels = [("psnr_db", "PSNR in dB, more is better"), (PERCEPTUAL, "perceptual distance, less is better")]
    if len({result["bits"] for result in results}) == 1:
        ordered = sorted(results, key=lambda result: result["heldout"]["psnr_db"])
        figure = Figure(figsize=(10, 1.2 + 0.32 * len(ordered)), layout="constrained")
        for axis, (metric, label) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
            values = [result["heldout"][metric] for result in ordered]
            _draw_dots(
                axis, [result["name"] for result in ordered], values, "{:.2f}" if metric == "psnr_db" else "{:.3f}"
            )
            axis.set_xlabel(label)
        rates = sorted(result["bits_per_picture"] for result in results)
        figure.suptitle(f"Held-out pictures at {_range(rates)} bits a picture")
    else:
        figure = Figure(figsize=(12, 5), layout="constrained")
        axes = figure.subplots(1, 2)
        names = list(dict.fromkeys(result["name"] for result in results))
        for axis, (metric, label) in zip(axes, panels, strict=True):
            for number, name in enumerate(names):
                points = sorted(
                    (result["bits_per_picture"], result["heldout"][metric])
                    for result in results
                    if result["name"] == name
                )
                color, marker = f"C{number % 10}", MARKERS[number % len(MARKERS)]
                axis.plot(*zip(*points, strict=True), color=color, marker=marker, label=name, linewidth=1.2)
            axis.set_xlabel("bits a picture")
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        figure.suptitle("Rate and distortion on held-out pictures")
    figure.savefig(path, format="png", dpi=DOTS_PER_INCH)


def plot_collapse(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the share of the codes in use and the perplexity over the training set, the baseline apart."""
    ordered = results[::-1]  # the first at the top
    names = [result["name"] for result in ordered]
    colors = ["0.55" if name == BASELINE else "C0" for name in names]
    figure = Figure(figsize=(10, 1.2 + 0.36 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    usage = [100 * result["train"]["codebook_usage"] for result in ordered]
    perplexity = [result["train"]["codebook_perplexity"] for result in ordered]
    for axis, values, text in ((left, usage, "{:.1f} %"), (right, perplexity, "{:,.0f}")):
        bars = axis.barh(names, values, color=colors)
        axis.bar_label(bars, [text.format(value) for value in values], padding=3, fontsize=9)
        axis.margins(x=0.18)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
    left.set_xlabel("codes used at least once, in %")
    right.set_xlabel("perplexity of the codes")
    size = results[0]["codebook_size"]
    figure.suptitle(f"Use of {size:,} codes over the training set")
    figure.savefig(path, format="png", dpi=DOTS_PER_INCH)


def _draw_dots(axis: Axes, names: Sequence[str], values: Sequence[float], text: str) -> None:
    axis.plot(values, names, "o", color="C0")
    for name, value in zip(names, values, strict=True):
        axis.annotate(
            text.format(value), (value, name), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9
        )
    axis.margins(x=0.18, y=0.06)
    axis.grid(alpha=0.3)


def _range(values: Sequence[float]) -> str:
    low, high = round(values[0]), round(values[-1])
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
