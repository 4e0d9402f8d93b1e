"""Pictures of a run: curves from its log, and grids of originals above their reconstructions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from visual_tokenizer.data.transforms import pixels_to_bytes
from visual_tokenizer.errors import UserError
from visual_tokenizer.runs.files import whole_file

GAP = 2
"""Pixels between the pictures of a grid."""

ADVERSARIAL_LOSSES = ("loss/adversarial", "loss/discriminator")


def reconstruction_grid(pixels: Tensor, reconstruction: Tensor, columns: int = 8) -> Image.Image:
    """Return a picture with rows of originals, each above a row of their reconstructions.

    Args:
        pixels: (B, 3, H, W) in [-1, 1], B 1 or more; of clips (B, 3, T, H, W) the first, middle and last frame are
            shown side by side.
        reconstruction: the same shape, clamped.
        columns: pictures in a row, at most; all frames of a clip are in one row.

    Raises:
        ValueError: the shapes differ or are not (B, 3, H, W) or (B, 3, T, H, W).
    """
    if pixels.ndim == 5 and pixels.shape == reconstruction.shape and pixels.shape[2]:
        shown = sorted({0, pixels.shape[2] // 2, pixels.shape[2] - 1})
        pixels, reconstruction = (
            clips[:, :, shown].transpose(1, 2).flatten(0, 1) for clips in (pixels, reconstruction)
        )
        columns = max(1, columns // len(shown)) * len(shown)
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape != reconstruction.shape or not len(pixels):
        raise UserError(
            f"pixels and reconstruction must have one shape (B, 3, [T,] H, W), got {tuple(pixels.shape)} and "
            f"{tuple(reconstruction.shape)}"
        )
    return grid_of_rows([pixels, reconstruction.to(pixels)], columns, below=GAP)


def grid_of_rows(rows: Sequence[Tensor], columns: int = 8, below: int = 0) -> Image.Image:
    """Return a picture of rows (B, 3, H, W) in [-1, 1], all of one shape, one below the other.

    Where B is more than `columns`, they are in bands of so many; `below` further white lines are at the bottom.
    """
    count, _, height, width = rows[0].shape
    columns = min(columns, count)
    band = len(rows) * (height + GAP) + GAP
    grid = Image.new("RGB", (GAP + columns * (width + GAP), -(-count // columns) * band + below), "white")
    for number, row in enumerate(rows):
        for position, picture in enumerate(pixels_to_bytes(row).permute(0, 2, 3, 1).cpu().contiguous().numpy()):
            down, right = divmod(position, columns)
            place = GAP + right * (width + GAP), GAP + down * band + number * (height + GAP)
            grid.paste(Image.fromarray(picture), place)
    return grid


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with whole_file(path) as unfinished:
        picture.save(unfinished, format="PNG")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=100)


def plot_losses(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw to a PNG the loss and its terms in lines of log.jsonl, the discriminator's side too where there is one.

    They are drawn over the steps, on a logarithmic scale.
    """
    names = _names(entries, lambda name: name == "loss" or name.startswith("loss/"))
    panels = {"loss": [name for name in names if name not in ADVERSARIAL_LOSSES]}
    panels["adversarial losses"] = [name for name in names if name in ADVERSARIAL_LOSSES]
    panels["logits"] = _names(entries, lambda name: name in ("discriminator/real_logits", "discriminator/fake_logits"))
    panels["accuracy of the discriminator"] = _names(entries, lambda name: name == "discriminator/accuracy")
    panels["adaptive weight"] = _names(entries, lambda name: name == "discriminator/adaptive_weight")
    panels = {label: shown for label, shown in panels.items() if shown or label == "loss"}
    _plot(entries, list(panels.values()), path, ylabels=list(panels), logarithmic=("loss", "adaptive weight"))


def plot_codebook(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the share of used codes and the perplexity over the steps, in training and on held-out pictures."""
    usage = _names(entries, lambda name: name.endswith("usage"))
    perplexity = _names(entries, lambda name: name.endswith("perplexity"))
    _plot(entries, [usage, perplexity], path, ylabels=["share of codes used", "perplexity"])


def plot_health(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw what the codebook doctor recorded over the steps."""
    panels = {
        "health/usage": "share of codes alive",
        "health/perplexity": "perplexity",
        "health/dead": "dead codes",
        "health/age": "steps since last use",
        "quantization_error": "quantization error",
        "health/rank_distance": "distance of the ranks",
    }
    found = {label: _names(entries, lambda name, end=end: name.endswith(end)) for end, label in panels.items()}
    found = {label: names for label, names in found.items() if names}
    _plot(entries, list(found.values()), path, ylabels=list(found))


def plot_diagnosis(codebooks: Mapping[str, tuple[Tensor, Tensor]], path: Path) -> None:
    """Draw to a PNG how often each code was chosen, from the most to the least used, and how long ago.

    By name there are counts (K,) and ages (K,) in batches.
    """
    figure = Figure(figsize=(7, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1)
    for name, (counts, ages) in codebooks.items():
        upper.plot(range(1, len(counts) + 1), counts.sort(descending=True).values.tolist(), label=name)
        lower.hist(ages.tolist(), bins=40, label=name, alpha=0.6)
    upper.set_yscale("symlog", linthresh=1)
    upper.set_ylim(bottom=0)
    upper.set_xlabel("code, most used first")
    upper.set_ylabel("times chosen")
    lower.set_yscale("log")
    lower.set_xlabel("batches since the code was last chosen")
    lower.set_ylabel("codes")
    for axis in (upper, lower):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save_figure(figure, path)


def _names(entries: Iterable[Mapping[str, Any]], is_wanted: Any) -> list[str]:
    return sorted({name for entry in entries for name in entry if is_wanted(name)})


def _plot(
    entries: Sequence[Mapping[str, Any]],
    panels: list[list[str]],
    path: Path,
    ylabels: list[str],
    logarithmic: Sequence[str] = (),
) -> None:
    figure = Figure(figsize=(7, 3.5 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, names, ylabel in zip(axes, panels, ylabels, strict=True):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in entries if name in entry]
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, label=name, marker="." if len(points) < 30 else None)
        axis.set_xlabel("step")
        axis.set_ylabel(ylabel)
        if ylabel in logarithmic and any(entry.get(name, 0) > 0 for entry in entries for name in names):
            axis.set_yscale("log")
        if names:
            axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    save_figure(figure, path)
