"""Reports of `visual_tokenizer.evaluate` side by side: one table, rate against distortion, one grid of pictures.

Numbers are compared only where they were measured alike: the reports' protocols must be equal. What tokens mean is
shown where all reports measured it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Len
from matplotlib.figure import Figure
from PIL import Image

from visual_tokenizer.backbones.base import frames_as_pictures
from visual_tokenizer.data.batches import DataSection, PictureSet
from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.errors import MissingFileError, UserError
from visual_tokenizer.evaluation.plots import grid_of_rows, save_figure, save_picture
from visual_tokenizer.evaluation.reconstruction import reconstruct
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.recipe import recipe_to_dict
from visual_tokenizer.registry import decode_config
from visual_tokenizer.runs.files import save_text
from visual_tokenizer.runs.saved_models import read_json

RATE = "bits_per_pixel"
COLUMNS = ("tokens_per_picture", "codebook_size", "bits_per_picture", RATE)
"""What a report holds beside its metrics."""
SEMANTIC = "semantic"
"""What a report holds that was made with `--semantic`."""


@dataclass(kw_only=True)
class ComparisonRecipe(Section):
    """What is compared."""

    compare: Annotated[list[str], Len(2)]
    """Reports (JSON), or folders that hold one report `evaluation-*.json`."""

    output: str = "comparison"
    """Folder of comparison.md, comparison.json, rate_distortion.png and reconstructions.png."""

    sample_pictures: Annotated[int, Ge(0)] = 8
    """Pictures on the grid; 0 for no grid."""


def compare(recipe: ComparisonRecipe) -> str:
    """Write the table, the plot and, where the models are folders here, the grid; return the table as Markdown.

    Raises:
        FileNotFoundError: no such report.
        UserError: the reports were not measured alike; the message names what differs.
    """
    reports = [load_report(Path(name)) for name in recipe.compare]
    names = short_names([Path(name) for name in recipe.compare])
    check_protocols(dict(zip(names, reports, strict=True)))
    rows = {name: row_of(report) for name, report in zip(names, reports, strict=True)}
    if all(SEMANTIC in report for report in reports):
        for name, report in zip(names, reports, strict=True):
            rows[name] |= report[SEMANTIC]["values"]
    models = {
        name: _model_folder(Path(path), report)
        for name, path, report in zip(names, recipe.compare, reports, strict=True)
    }
    found = {name: model for name, model in models.items() if model is not None}
    grid = None
    if recipe.sample_pictures and found:  # before anything is written: a model may be damaged
        grid = comparison_grid(found, reports[0]["protocol"], recipe.sample_pictures)
    folder = Path(recipe.output)
    table = markdown_table(rows)
    save_text(table + "\n", folder / "comparison.md")
    result = {"protocol": reports[0]["protocol"], "rows": rows, "reports": list(recipe.compare)}
    if all(SEMANTIC in report for report in reports):
        result["semantic_protocol"] = reports[0][SEMANTIC]["protocol"]
    save_text(json.dumps(result, indent=1) + "\n", folder / "comparison.json")
    plot_rate_distortion(rows, folder / "rate_distortion.png")
    if grid is not None:
        save_picture(grid, folder / "reconstructions.png")
    return table


def load_report(path: Path) -> dict[str, Any]:
    """Read a report, or the only one in a folder.

    Raises:
        FileNotFoundError: there is none.
        UserError: a folder holds several, or the file is not a report.
    """
    file = path
    if path.is_dir():
        files = sorted(path.glob("evaluation-*.json"))
        if len(files) > 1:
            raise UserError(f"{path} holds {len(files)} reports; name one: {', '.join(map(str, files))}")
        if not files:
            raise MissingFileError(f"{path} holds no evaluation-*.json; `visual_tokenizer.evaluate` writes it")
        file = files[0]
    if not file.is_file():
        raise MissingFileError(f"there is no report {file}")
    report = read_json(file)
    if not {"metrics", "protocol", "model"} <= report.keys() or not isinstance(report["metrics"], dict):
        raise UserError(f"{file} is not a report: it needs the keys model, metrics and protocol")
    return report


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart; `final` and file names alone say little."""
    parts = [path.resolve().with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError(f"compare must name each report once, got {', '.join(map(str, paths))}")


def check_protocols(reports: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError, naming each field and value that differs, unless all protocols are equal.

    Those of what tokens mean are looked at where all reports have one.
    """
    sections = ["protocol", SEMANTIC] if all(SEMANTIC in report for report in reports.values()) else ["protocol"]
    (first_name, first), *others = (
        (name, {key: value for section in sections for key, value in _flat(_protocol(report, section)).items()})
        for name, report in reports.items()
    )
    for name, protocol in others:
        differing = [key for key in {**first, **protocol} if first.get(key) != protocol.get(key)]
        if differing:
            listed = "; ".join(f"{key}: {first.get(key)!r} and {protocol.get(key)!r}" for key in differing)
            raise UserError(
                f"{first_name} and {name} were not measured alike, so their numbers can't be compared. "
                f"protocol fields that differ: {listed}"
            )


def _protocol(report: Mapping[str, Any], section: str) -> dict[str, Any]:
    return report[section] if section == "protocol" else {section: report[section]["protocol"]}


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as dotted keys; a metric's key is its type."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        items = [(item.get("type", number), item) for number, item in enumerate(value)]
    else:
        return {key: value}
    return {name: item for part, inner in items for name, item in _flat(inner, f"{key}.{part}".strip(".")).items()}


def row_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a report: rate, then metrics."""
    return {name: report[name] for name in COLUMNS if name in report} | dict(report["metrics"])


def markdown_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return one row a model and one column a number, in the order of the first row."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = ["| model | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in rows.items():
        cells = [f"{row[column]:.5g}" if column in row else "" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot_rate_distortion(rows: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """Draw PSNR, and each perceptual distance, over bits a pixel to a PNG; one point a model; rows by name."""
    measures = [
        name
        for name in dict.fromkeys(name for row in rows.values() for name in row)
        if name == "psnr_db" or name.startswith(("perceptual_", "lpips_"))
    ]
    figure = Figure(figsize=(7, 3.5 * max(1, len(measures))), layout="constrained")
    for axis, measure in zip(figure.subplots(max(1, len(measures)), 1, squeeze=False)[:, 0], measures, strict=False):
        for name, row in rows.items():
            if RATE in row and measure in row:
                axis.plot(row[RATE], row[measure], "o", label=name)
                axis.annotate(name, (row[RATE], row[measure]), fontsize=7, xytext=(4, 4), textcoords="offset points")
        axis.set_xlabel("bits a pixel")
        axis.set_ylabel("PSNR (dB)" if measure == "psnr_db" else measure)
        axis.grid(alpha=0.3)
    save_figure(figure, path)


@torch.no_grad()
def comparison_grid(models: Mapping[str, Path], protocol: Mapping[str, Any], count: int) -> Image.Image:
    """Return a row of originals and, below it, one row of reconstructions a model (folders by name), in their order.

    The pictures are the first `count` of the set of `protocol`, that of the models' reports.
    """
    data = {"source": protocol["source"], "transform": {"resize_filter": protocol["resize_filter"]}}
    section = decode_config(DataSection, {**recipe_to_dict(DataSection()), **data}, where="protocol")
    source = SourceConfig.family.build(section.source)
    sizes = {"image_size": protocol["image_size"], "max_pictures": count}
    pixels = next(PictureSet(source, protocol["split"], section, **sizes).batches(count))["pixels"]
    rows = [frames_as_pictures(pixels)[:count]]
    for folder in models.values():
        tokenizer = VisualTokenizer.from_pretrained(folder, dtype=torch.float32).eval()
        rows.append(frames_as_pictures(reconstruct(tokenizer, pixels)[1])[:count])
    return grid_of_rows(rows, columns=count)


def _model_folder(path: Path, report: Mapping[str, Any]) -> Path | None:
    """Return the folder of a report's model, if it is here."""
    for folder in (path, Path(report["model"]), path.parent):
        if (folder / "config.json").is_file():
            return folder
    return None
