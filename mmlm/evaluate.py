"""Does a merged model draw and describe what it was trained on, and what does it still know of text?

What is measured is a list of parts, see `mmlm.measures`: by default whether its drawings are nearest to the training
pictures of their captions. All measures look at the same pairs: captions spread evenly over the distinct captions of
the training split, and the first pictures that were held out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Ge

from mmlm.measures.base import Findings, Measure, MeasureConfig, Subject
from mmlm.merging.folder import load_merged
from mmlm.recipes.sampling import Scale, Temperature, TopK, TopP
from mmlm.scores.picture_bank import NETWORK
from visual_tokenizer.data.sources.base import SourceConfig, Split
from visual_tokenizer.evaluation.plots import save_picture
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.recipe import provenance
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.runs.files import save_json

DRAWING = "drawing"
"""The measure whose values stand in evaluation.json under names of their own."""
VALUES_OF_DRAWING: dict[str, Any] = {
    "generated": None,
    "reconstructed": None,
    "chance": None,
    "losses": {},
    "prompts": [],
    "num_pictures": 0,
}
"""Their names, in the file's order, and what stands there without the measure."""


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
    measures: list[Any] = field(default_factory=lambda: [DRAWING])
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


Report = Callable[[str, Findings], Any]
"""Called with the name of each measure and what it found, as soon as it is known."""


def evaluate_by_recipe(
    recipe: LMEvaluationRecipe, show_progress: bool = False, report: Report | None = None
) -> dict[str, Any]:
    """Measure a merged model as a recipe says; write evaluation.json and the sheets to its `output`.

    Returns:
        What evaluation.json holds: the values of the measure `drawing`, empty where it is not among the measures;
        `measures`: name of each other measure → what it found; `protocol`: settings, network, versions.

    Raises:
        UserError: a wrong setting.
    """
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
    drawing = found[DRAWING].values if DRAWING in found else {}
    result = {
        **{name: drawing.get(name, empty) for name, empty in VALUES_OF_DRAWING.items()},
        "measures": {name: one.values for name, one in found.items() if name != DRAWING},
        "protocol": {
            "network": NETWORK,
            **{name: value for name, value in vars(recipe).items() if name not in ("data", "measures")},
            "data": recipe.data.to_dict(),
            "measures": [measure.protocol() for measure in measures],
            "sampling": processor.sampling,
            **provenance(),
        },
    }
    for name, sheet in [item for one in found.values() for item in one.sheets.items()]:
        save_picture(sheet, Path(recipe.output, f"{name}.png"))
    save_json(result, Path(recipe.output, "evaluation.json"))
    return result
