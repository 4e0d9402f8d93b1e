"""Does a merged model draw and describe what it was trained on, and what does it still know of text?

What is measured is a list of parts, see `mmlm.measures`: by default whether its drawings are nearest to the training
pictures of their captions. All measures look at the same pairs: captions spread evenly over the distinct captions of
the training split, and the first pictures that were held out of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from mmlm.measures.base import Findings, Measure, MeasureConfig, Subject
from mmlm.merging.folder import load_merged
from mmlm.recipes.sampling import Scale, Temperature, TopK, TopP
from mmlm.scores.picture_bank import NETWORK, Accuracy
from visual_tokenizer.data.sources.base import SourceConfig, Split
from visual_tokenizer.evaluation.plots import save_picture
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.recipe import provenance
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.files import save_json

DRAWING = "drawing"
"""The measure whose values stand in evaluation.json under names of their own."""


def _default_measures() -> list[Any]:
    return [DRAWING]


@dataclass(kw_only=True)
class LMEvaluationRecipe(Section):
    """What is measured, and on which pictures."""

    renamed: ClassVar[Mapping[str, str | None]] = {"output_dir": "output"}

    model: str
    """Folder of the merged model."""
    data: SourceConfig
    """The pictures and captions on which it was trained."""
    output: str
    """Folder for evaluation.json and the sheets of pictures; files of those names are replaced."""
    measures: list[Any] = field(default_factory=_default_measures)
    """Parts of `mmlm.measures`, each once: names, or `{type: name, field: value}`."""
    split: Split = "train"
    """Split of the source that gives prompts and neighbours."""
    num_prompts: Annotated[int, Ge(1)] = 64
    """Captions that are drawn, and pairs of each split that are measured; fewer where the split has not so many."""
    max_pictures: Annotated[int, Ge(1)] = 20_000
    """Pictures of the split that are compared with, the first ones."""
    guidance_scale: Scale | None = None
    """Classifier-free guidance; 1: none; null, here and in the next three: as saved with the model."""
    temperature: Temperature | None = None
    """Scores are divided by it; 0: the likeliest token."""
    top_k: TopK | None = None
    """Only the k likeliest tokens are drawn from; 0: all."""
    top_p: TopP | None = None
    """Only the likeliest tokens that together have this probability are drawn from."""
    seed: Annotated[int, Ge(0)] = 0
    """Of the drawings."""
    batch_size: Annotated[int, Ge(1)] = 16
    """Drawings, or sequences, at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not MeasureConfig.family.configs(self.measures, "measures"):
            raise ConfigError(f"measures must hold one of {', '.join(MeasureConfig.family.names())} or more, got none")


@dataclass
class EvaluationReport:
    """Result of `evaluate`; written to evaluation.json. The first six are those of the measure `drawing`."""

    generated: Accuracy | None = None
    """Of the drawings."""
    reconstructed: Accuracy | None = None
    """Of the visual tokenizer's reconstructions of the originals: the most that can be reached."""
    chance: Accuracy | None = None
    """Of pictures taken at random."""
    losses: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Split → kind of token → nats a token, of caption → picture."""
    prompts: list[dict[str, Any]] = field(default_factory=list)
    """`caption`, `key` of its original, `rank` of the nearest picture of the same caption, from 1."""
    num_pictures: int = 0
    """Training pictures compared with."""
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of each other measure → what it found; see its file."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """Settings, network, versions."""


Report = Callable[[str, Findings], Any]
"""Called with the name of each measure and what it found, as soon as it is known."""


def evaluate(
    model_dir: str | os.PathLike[str],
    source: SourceConfig | Mapping[str, Any],
    num_prompts: int = 64,
    seed: int = 0,
    output_dir: str | os.PathLike[str] | None = None,
    measures: Sequence[str | Mapping[str, Any] | MeasureConfig] = (DRAWING,),
    **settings: Any,
) -> EvaluationReport:
    """Measure a merged model; by default, draw training captions and look the drawings up among the training pictures.

    Args:
        model_dir: folder of the merged model.
        source: the pictures and captions of its training: a section `{"type": name, **fields}` or a config.
        num_prompts: captions that are drawn, and pairs of each split that are measured.
        seed: of the drawings.
        output_dir: where evaluation.json and the sheets go; the model's folder by default.
        measures: parts of `mmlm.measures`: names, sections or configs.
        **settings: further fields of `LMEvaluationRecipe`.

    Raises:
        DataSourceError: no pictures with captions.
        MissingFileError: no merged model.
        UserError: a wrong setting.
        ConfigError: no such measure, or a wrong field of one.
        MissingWeightsError: a network that a measure looks through is not on this machine.
    """
    recipe = LMEvaluationRecipe(
        model=os.fspath(model_dir),
        data=SourceConfig.family.config(source),
        output=os.fspath(model_dir if output_dir is None else output_dir),
        measures=MeasureConfig.family.configs(measures, "measures"),
        num_prompts=num_prompts,
        seed=seed,
        **settings,
    )
    return evaluate_by_recipe(recipe)


def evaluate_by_recipe(
    recipe: LMEvaluationRecipe, show_progress: bool = False, report: Report | None = None
) -> EvaluationReport:
    """Run `evaluate` as a recipe says, and write evaluation.json and the sheets to its `output`."""
    family = MeasureConfig.family
    measures: list[Measure] = [family.build(config) for config in family.configs(recipe.measures, "measures")]
    model, processor = load_merged(recipe.model)
    subject = Subject(
        model,
        processor,
        SourceConfig.family.build(recipe.data),
        split=recipe.split,
        num_pairs=recipe.num_prompts,
        max_pictures=recipe.max_pictures,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        sampling={name: getattr(recipe, name) for name in ("guidance_scale", "temperature", "top_k", "top_p")},
        show_progress=show_progress,
    )
    found: dict[str, Findings] = {}
    for measure in measures:
        name = measure.config.type
        found[name] = measure.measure(subject)
        if report is not None:
            report(name, found[name])
    result = EvaluationReport(
        measures={name: one.values for name, one in found.items() if name != DRAWING},
        protocol={
            "network": NETWORK,
            **_plain(recipe),
            "measures": [measure.protocol() for measure in measures],
            "sampling": processor.sampling,
            **provenance(),
        },
    )
    if DRAWING in found:
        values = found[DRAWING].values
        for name in ("generated", "reconstructed", "chance"):
            setattr(result, name, Accuracy(**values[name]))
        for name in ("losses", "prompts", "num_pictures"):
            setattr(result, name, values[name])
    _write(result, list(found.values()), recipe)
    return result


def _plain(recipe: LMEvaluationRecipe) -> dict[str, Any]:
    return {
        **{key: value for key, value in vars(recipe).items() if key not in ("data", "measures")},
        "data": recipe.data.to_dict(),
    }


def _write(result: EvaluationReport, found: list[Findings], recipe: LMEvaluationRecipe) -> None:
    folder = Path(recipe.output)
    for name, sheet in [item for one in found for item in one.sheets.items()]:
        save_picture(sheet, folder / f"{name}.png")
    save_json(asdict(result), folder / "evaluation.json")
