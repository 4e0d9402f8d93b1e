"""Measure a pre-trained model: masked tokens of held-out pictures, and what its frozen features are good for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import BeitForMaskedImageModeling

from visual_tokenizer.data.batches import DataSection, PictureSet
from visual_tokenizer.data.sources.base import SourceConfig
from visual_tokenizer.evaluation.plots import grid_of_rows, save_picture
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.pretraining.batches import HeldoutPictures
from visual_tokenizer.pretraining.beit import build_beit
from visual_tokenizer.pretraining.export import TOKENIZER_NAME
from visual_tokenizer.pretraining.feature_probe import default_layers, labelled_features, probe
from visual_tokenizer.pretraining.masked_pictures import prediction_rows
from visual_tokenizer.pretraining.masking import BlockMasking
from visual_tokenizer.pretraining.objective import MaskedTokenMeter
from visual_tokenizer.pretraining.recipe import MaskingSection, PretrainingRecipe
from visual_tokenizer.pretraining.targets import TokenTargets
from visual_tokenizer.recipe import provenance
from visual_tokenizer.runs.files import save_text
from visual_tokenizer.runs.saved_models import load_whole


def build_masking(section: MaskingSection, patch_grid: tuple[int, int], seed: int) -> BlockMasking:
    """Return the masks that a recipe's section describes."""
    return BlockMasking(
        patch_grid,
        masked_patches=section.masked_patches,
        min_block_patches=section.min_block_patches,
        min_aspect=section.min_aspect,
        seed=seed,
    )


def pictures_of(data: DataSection, image_size: int, split: str, most: int) -> PictureSet:
    """Return at most `most` pictures of a split, centre-cropped."""
    return PictureSet(SourceConfig.family.build(data.source), split, data, image_size=image_size, max_pictures=most)


@torch.no_grad()
def measure_masked_tokens(
    model: nn.Module, targets: TokenTargets, heldout: HeldoutPictures, device: torch.device, batch_size: int = 64
) -> dict[str, float]:
    """Return `masked_loss` in nats a token and `masked_accuracy` over all held-out pictures, each once."""
    meter = MaskedTokenMeter(device)
    for start in range(0, len(heldout), batch_size):
        items = [heldout[index] for index in range(start, min(start + batch_size, len(heldout)))]
        pixels, mask = (
            torch.stack([item[name] for item in items]).to(device) for name in ("pixel_values", "bool_masked_pos")
        )
        meter.add(model(pixel_values=pixels, bool_masked_pos=mask).logits, targets(pixels), mask)
    return meter.flush(Accelerator(cpu=device.type == "cpu"))


def measure_features(
    model: BeitForMaskedImageModeling, recipe: PretrainingRecipe, device: torch.device
) -> dict[str, float]:
    """Return the accuracies of `feature_probe.probe` for the model, the same with random weights, and pixels.

    Raises:
        UserError: the source has no such labels.
    """
    section, seed = recipe.probe, recipe.training.seed
    assert section.label_column is not None
    layers = section.layers or default_layers(recipe.model.layers)
    with _seeded(seed):
        untrained: nn.Module = build_beit(model.config, recipe.patch_aggregation).beit
    networks: dict[str, Any] = {"trained": model.beit.eval(), "random": untrained.to(device).eval()}
    found = [
        labelled_features(
            networks, pictures_of(recipe.data, recipe.image_size, split, most), section.label_column, layers, device
        )
        for split, most in (
            ("train", section.max_training_pictures),
            ("heldout", recipe.training.max_evaluation_pictures),
        )
    ]
    counts = {"training_pictures": float(len(found[0].labels)), "heldout_pictures": float(len(found[1].labels))}
    return {**counts, **probe(found[0], found[1], section.neighbours, seed)}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def table(values: dict[str, Any]) -> str:
    """Return the accuracies as a table, a row a view."""
    names = [name.removeprefix("knn_accuracy_") for name in values if name.startswith("knn_accuracy_")]
    rows = [
        f"{name:<20} {values[f'knn_accuracy_{name}']:>8.1%} {values[f'linear_accuracy_{name}']:>8.1%}" for name in names
    ]
    return "\n".join([f"{'features':<20} {'kNN':>8} {'linear':>8}", *rows, f"{'chance':<20} {values['chance']:>8.1%}"])


def measure(folder: Path, recipe: PretrainingRecipe, output: Path) -> dict[str, Any]:
    """Measure a saved model, write the JSON file and the grid, and return what the file holds.

    Raises:
        UserError: the source has no labels of the recipe's `probe.label_column`.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    load = BeitForMaskedImageModeling.from_pretrained
    model, _ = load_whole(load, folder, "pre-trained model", model_type="beit", dtype=torch.float32)
    torch.nn.Module.to(model, device)
    tokenizer = VisualTokenizer.from_pretrained(folder / TOKENIZER_NAME, dtype=torch.float32)
    torch.nn.Module.to(tokenizer, device)
    targets = TokenTargets(tokenizer, recipe.tokenizer_image_size or tokenizer.config.image_size)
    pictures = pictures_of(recipe.data, recipe.image_size, "heldout", recipe.training.max_evaluation_pictures)
    heldout = HeldoutPictures(pictures, build_masking(recipe.masking, recipe.patch_grid, recipe.training.seed))
    values = measure_masked_tokens(model, targets, heldout, device)
    if recipe.probe.label_column is not None:
        values |= measure_features(model, recipe, device)
    report = {"model": str(folder), "metrics": values, "label_column": recipe.probe.label_column, **provenance()}
    save_text(json.dumps(report, indent=1) + "\n", output)
    pixels, mask = (part.to(device) for part in heldout.spread(recipe.training.sample_pictures))
    rows = prediction_rows(model, targets, pixels, mask, recipe.patch_grid)
    save_picture(grid_of_rows(rows), output.with_suffix(".png"))
    return report


def show(values: dict[str, float]) -> None:
    """Print what was measured."""
    print(f"masked tokens: {values['masked_accuracy']:.1%} right, {values['masked_loss']:.3f} nats")
    if "chance" in values:
        print(table(values))
