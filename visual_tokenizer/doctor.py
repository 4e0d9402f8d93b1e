"""Entry point: `python -m visual_tokenizer.doctor --model DIR`: is its codebook in good health?"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from visual_tokenizer.data.batches import DataSection, PictureSet, with_data_of_model
from visual_tokenizer.data.sources.base import SourceConfig, Split
from visual_tokenizer.errors import UserError, program
from visual_tokenizer.evaluation.diagnosis import CodebookReport, diagnose
from visual_tokenizer.evaluation.plots import plot_diagnosis
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.recipe import parse_arguments
from visual_tokenizer.runs.files import save_text

PROGRAM = "python -m visual_tokenizer.doctor"

ABOUT = """\
Examine the codebook of a visual tokenizer: which codes are used, how evenly, how well latents are met, and what to do
about it. Pictures come from the recipe.yaml beside the weights unless --data says otherwise.

Examples:
  python -m visual_tokenizer.doctor --model run/openmoji/final
  python -m visual_tokenizer.doctor --model DIR --split heldout --output run/diagnosis
  python -m visual_tokenizer.doctor --model DIR --data.source.type image_folder --data.source.folder pictures

Exit codes: 0 healthy; 1 something is not; 2 usage or input error."""


@dataclass(kw_only=True)
class DoctorRecipe(Section):
    """Which model, on which pictures."""

    renamed: ClassVar[Mapping[str, str | None]] = {"out": "output"}

    model: str
    """Folder or hub name of a visual tokenizer."""

    data: DataSection = field(default_factory=DataSection)
    """Pictures; by default those of the recipe.yaml in the folder of the model."""

    split: Split = "train"
    """Part of the pictures."""

    max_pictures: Annotated[int, Ge(1)] | None = None
    """At most so many pictures of the split; null for all."""

    batch_size: Annotated[int, Ge(1)] = 32
    """Pictures of one pass."""

    output: str | None = None
    """Folder of diagnosis.json and diagnosis.png; null: that of the model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is None and not Path(self.model).is_dir():
            raise UserError(f"output must name a folder, because the model {self.model!r} is not a directory here")


def examine(recipe: DoctorRecipe) -> list[CodebookReport]:
    """Diagnose, write the files, and return the reports."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = VisualTokenizer.from_pretrained(recipe.model, dtype=torch.float32).to(device)
    size = tokenizer.config.image_size
    source = SourceConfig.family.build(recipe.data.source)
    pictures = PictureSet(source, recipe.split, recipe.data, image_size=size, max_pictures=recipe.max_pictures)
    batches = tqdm(pictures.batches(recipe.batch_size), desc="examining", unit="batch")
    reports: list[CodebookReport] = diagnose(tokenizer, batches, device)
    folder = Path(recipe.output or recipe.model)
    written: dict[str, Any] = {
        "model": recipe.model,
        "split": recipe.split,
        "quantizer": tokenizer.config.quantizer,
        "codebooks": [
            {"name": report.name, "findings": [dataclasses.asdict(finding) for finding in report.findings]}
            for report in reports
        ],
    }
    save_text(json.dumps(written, indent=1) + "\n", folder / "diagnosis.json")
    plot_diagnosis({report.name: (report.counts, report.ages) for report in reports}, folder / "diagnosis.png")
    return reports


def show(reports: Sequence[CodebookReport], console: Console) -> None:
    """Print a table for each codebook."""
    for report in reports:
        table = Table(title=f"{report.name}: {len(report.counts)} codes, {int(report.counts.sum())} tokens")
        table.add_column("what")
        table.add_column("value", justify="right")
        table.add_column("meaning", overflow="fold")
        for finding in report.findings:
            is_whole = math.isclose(finding.value, round(finding.value)) and abs(finding.value) >= 10
            value = f"{finding.value:.0f}" if is_whole else f"{finding.value:.4g}"
            table.add_row(finding.name, value, finding.advice, style=None if finding.is_healthy else "bold red")
        console.print(table)


@program(PROGRAM)
def main(arguments: Sequence[str]) -> int:
    """Examine by the command line's arguments and return the exit code."""
    words = with_data_of_model(arguments)
    recipe = parse_arguments(DoctorRecipe, words, program=PROGRAM, about=ABOUT)
    reports = examine(recipe)
    show(reports, Console())
    return int(any(not finding.is_healthy for report in reports for finding in report.findings))


if __name__ == "__main__":
    raise SystemExit(main())
