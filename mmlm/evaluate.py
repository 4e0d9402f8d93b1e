"""Does a merged model draw what it was trained on?

Protocol: captions spread evenly over the distinct captions of the training split are drawn with one seed. A
frozen EfficientNet-Lite0 embeds every picture; a drawing counts when a training picture of the same caption is
among its one (five) nearest of all training pictures. Beside it stand the same numbers for the visual
tokenizer's reconstructions of those pictures, which is the most that a language model on top of it can reach,
and for pictures taken at random.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from mmlm.generation.grid import image_grid
from mmlm.generation.images import generate_images
from mmlm.likelihood import loss_by_kind
from mmlm.merged_model import load_merged
from mmlm.picture_bank import NETWORK, PICTURES_AT_A_TIME, Accuracy, PictureBank
from mmlm.processing import MultimodalProcessor
from visual_tokenizer.data.sources.base import SPLITS, DataSourceError, Source, SourceConfig
from visual_tokenizer.recipe import provenance


@dataclass(kw_only=True)
class EvaluationRecipe:
    """What is drawn and what it is compared with."""

    model: str
    """Folder of the merged model."""
    data: SourceConfig
    """The pictures and captions on which it was trained."""
    output_dir: str
    """Folder for evaluation.json and evaluation.png; files of that name are replaced."""
    split: str = "train"
    """Split of the source that gives prompts and neighbours: train, heldout or all."""
    num_prompts: int = 64
    """Captions that are drawn; 1 or more; fewer where the split has not so many."""
    max_pictures: int = 20_000
    """Pictures of the split that are compared with, the first ones; 1 or more."""
    guidance_scale: float | None = None
    """Classifier-free guidance, 0 or more; 1: none; null, here and in the next three: as saved with the model."""
    temperature: float | None = None
    """0 (greedy) or more."""
    top_k: int | None = None
    """Only the k likeliest tokens are drawn from; 0: all."""
    top_p: float | None = None
    """Only the likeliest tokens that together have this probability are drawn from; in (0, 1]."""
    seed: int = 0
    """Of the drawings."""
    batch_size: int = 16
    """Drawings at a time; 1 or more."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        for name in ("num_prompts", "max_pictures", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")


@dataclass
class Evaluation:
    """Result of `evaluate`; written to evaluation.json."""

    generated: Accuracy
    """Of the drawings."""
    reconstructed: Accuracy
    """Of the visual tokenizer's reconstructions of the originals: the most that can be reached."""
    chance: Accuracy
    """Of pictures taken at random."""
    losses: dict[str, dict[str, float | None]]
    """Split → kind of token → nats a token, of caption → picture."""
    prompts: list[dict[str, Any]]
    """`caption`, `key` of its original, `rank` of the nearest picture of the same caption, from 1."""
    num_pictures: int
    """Training pictures compared with."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """Settings, network, versions."""


def evaluate(
    model_dir: str | os.PathLike[str],
    source: SourceConfig | Mapping[str, Any],
    num_prompts: int = 64,
    seed: int = 0,
    output_dir: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Evaluation:
    """Draw captions of the training set and look the drawings up among the training pictures.

    Args:
        model_dir: folder of the merged model.
        source: the pictures and captions of its training: a section `{"type": name, **fields}` or a config.
        num_prompts: captions that are drawn.
        seed: of the drawings.
        output_dir: where evaluation.json and evaluation.png go; the model's folder by default.
        **settings: further fields of `EvaluationRecipe`.

    Raises:
        DataSourceError: no pictures with captions.
        MergedModelError: no merged model.
        GenerationError: a wrong setting.
    """
    recipe = EvaluationRecipe(
        model=os.fspath(model_dir),
        data=SourceConfig.family.config(source),
        output_dir=os.fspath(model_dir if output_dir is None else output_dir),
        num_prompts=num_prompts,
        seed=seed,
        **settings,
    )
    return evaluate_by_recipe(recipe)


def evaluate_by_recipe(recipe: EvaluationRecipe, show_progress: bool = False) -> Evaluation:
    """Run `evaluate` as a recipe says, and write evaluation.json and evaluation.png to its `output_dir`."""
    model, processor = load_merged(recipe.model)
    source: Source = SourceConfig.family.build(recipe.data)
    bank = PictureBank(processor.image_processor, model.device)
    for samples in _batches(_samples(source, recipe.split), recipe.max_pictures):
        bank.add(samples)
    chosen = spread(list(dict.fromkeys(bank.captions)), recipe.num_prompts)
    places = [bank.captions.index(caption) for caption in chosen]
    originals = _pictures(source, recipe, places)

    drawn = generate_images(
        model,
        processor,
        chosen,
        guidance_scale=recipe.guidance_scale,
        temperature=recipe.temperature,
        top_k=recipe.top_k,
        top_p=recipe.top_p,
        seed=recipe.seed,
        batch_size=recipe.batch_size,
        show_progress=show_progress,
    )
    indices = processor.encode_images(originals)
    generated, ranks = bank.look_up(drawn, chosen)
    reconstructed, _ = bank.look_up(processor.decode_indices(indices), chosen)
    losses = {recipe.split: _losses(model, processor, chosen, indices, recipe.batch_size)}
    unseen = _unseen(source, recipe)
    if unseen:
        captions = [sample["caption"] for sample in unseen]
        heldout = processor.encode_images([sample["image"] for sample in unseen])
        losses["heldout"] = _losses(model, processor, captions, heldout, recipe.batch_size)
    result = Evaluation(
        generated=generated,
        reconstructed=reconstructed,
        chance=bank.chance(chosen),
        losses=losses,
        prompts=[
            {"caption": caption, "key": bank.keys[place], "rank": rank}
            for caption, place, rank in zip(chosen, places, ranks, strict=True)
        ],
        num_pictures=len(bank.captions),
        protocol={"network": NETWORK, **_plain(recipe), "sampling": processor.sampling, **provenance()},
    )
    pairs = [side_by_side(*pair) for pair in zip(drawn, originals, strict=True)]
    _write(result, image_grid(pairs, chosen, cell_size=max(192, pairs[0].width)), recipe)
    return result


def spread(items: list[str], count: int) -> list[str]:
    """Return at most `count` of `items`, evenly spread over them, in order."""
    count = min(count, len(items))
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return one picture of two, the right one scaled to the height of the left one."""
    right = right.resize((max(1, round(right.width * left.height / right.height)), left.height))
    both = Image.new("RGB", (left.width + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both


def _samples(source: Source, split: str) -> Iterator[dict[str, Any]]:
    for sample in source.load(split):
        if sample["caption"].strip():
            yield sample


def _batches(samples: Iterator[dict[str, Any]], most: int) -> Iterator[list[dict[str, Any]]]:
    limited = islice(samples, most)
    first = True
    while batch := list(islice(limited, PICTURES_AT_A_TIME)):
        first = False
        yield batch
    if first:
        raise DataSourceError("data: the split has no pictures with captions to draw")


def _pictures(source: Source, recipe: EvaluationRecipe, places: list[int]) -> list[Image.Image]:
    """Return the pictures at `places` of the bank: read again, so that not all are held in memory."""
    wanted = set(places)
    numbered = enumerate(islice(_samples(source, recipe.split), max(places) + 1))
    found = {place: sample["image"] for place, sample in numbered if place in wanted}
    return [found[place] for place in places]


def _unseen(source: Source, recipe: EvaluationRecipe) -> list[dict[str, Any]]:
    """Return held-out samples for the loss, where the split is train and the source holds some out."""
    if recipe.split != "train" or not (source.has_own_heldout or recipe.data.heldout_fraction > 0):
        return []
    return list(islice(_samples(source, "heldout"), recipe.num_prompts))


def _losses(
    model: PreTrainedModel,
    processor: MultimodalProcessor,
    captions: list[str],
    indices: Tensor,
    batch_size: int,
) -> dict[str, float | None]:
    pairs = zip(captions, indices, strict=True)
    sequences = [processor.caption_to_image(*pair) for pair in pairs]
    return loss_by_kind(model, processor.layout, sequences, batch_size)


def _plain(recipe: EvaluationRecipe) -> dict[str, Any]:
    return {
        **{key: value for key, value in vars(recipe).items() if key != "data"},
        "data": recipe.data.to_dict(),
    }


def _write(result: Evaluation, sheet: Image.Image, recipe: EvaluationRecipe) -> None:
    folder = Path(recipe.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".evaluation.{uuid.uuid4().hex}"
    sheet.save(beside, format="PNG")
    beside.replace(folder / "evaluation.png")
    beside.write_text(json.dumps(asdict(result), indent=2, ensure_ascii=False), encoding="utf-8")
    beside.replace(folder / "evaluation.json")
