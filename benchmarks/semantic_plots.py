"""Pictures of `benchmarks.compare_semantic` and `benchmarks.semantic_tradeoff`: pixels against meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

DOTS_PER_INCH = 120

MARKERS = "osD^v<>PX*p"

PANELS: Mapping[str, str] = {
    "knn_accuracy_codes": "kNN accuracy on codes",
    "knn_accuracy_tokens": "kNN accuracy on bags of tokens",
    "mean_recall_codes": "mean recall on codes",
}


def standard_error(share: float, pictures: int) -> float:
    """Return that of a share of so many independent pictures."""
    return (share * (1 - share) / pictures) ** 0.5


def plot_methods(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw each method's meaning over its PSNR, with standard errors; a dashed line is chance."""
    figure = Figure(figsize=(4.6 * len(PANELS) + 1.6, 4.5), layout="constrained")
    for axis, (name, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for number, result in enumerate(results):
            _point(axis, result, name, f"C{number % 10}", fmt=MARKERS[number % len(MARKERS)], label=result["name"])
        chance = name.rpartition("_")[0] + "_chance"
        axis.axhline(results[0]["semantic"][chance], color="0.5", linestyle="--", linewidth=1)
        axis.set_xlabel("PSNR in dB")
        axis.set_ylabel(label)
        axis.margins(0.1)
        axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.savefig(path, format="png", dpi=DOTS_PER_INCH)


def plot_tradeoff(name: str, results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw text → image R@5 over PSNR along the factor on the semantic losses.

    Args:
        name: the method.
        results: with `factor`, in its order.
        path: PNG to write.
    """
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    axis = figure.subplots()
    measure = "text_to_image_r5_codes"
    points = [(result["heldout"]["psnr_db"], result["semantic"][measure]) for result in results]
    axis.plot(*zip(*points, strict=True), color="0.7", linewidth=1, zorder=0)
    for result, where in zip(results, points, strict=True):
        _point(axis, result, measure, "C0")
        axis.annotate(f"× {result['factor']:g}", where, xytext=(5, 5), textcoords="offset points", fontsize=9)
    axis.axhline(results[0]["semantic"]["text_to_image_r5_chance"], color="0.5", linestyle="--", linewidth=1)
    axis.set_xlabel("PSNR in dB, more is better")
    axis.set_ylabel("text → image R@5, more is better")
    axis.set_title(f"{name}: weight of the semantic losses")
    axis.margins(0.15)
    axis.grid(alpha=0.3)
    figure.savefig(path, format="png", dpi=DOTS_PER_INCH)


def _point(axis: Any, result: Mapping[str, Any], measure: str, color: str, **style: Any) -> None:
    value = result["semantic"][measure]
    error = standard_error(value, result["semantic_protocol"]["heldout_pictures"])
    axis.errorbar(result["heldout"]["psnr_db"], value, yerr=error, color=color, capsize=3, **{"fmt": "o", **style})
