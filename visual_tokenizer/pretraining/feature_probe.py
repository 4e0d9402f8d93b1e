"""What frozen features are good for: nearest neighbours and a linear classifier on labelled pictures.

The features are the average of a block's patches, as in the linear probes of image GPT and BEiT. They stand beside
those of the same transformer with random weights and beside the pixels, so that one sees what pre-training gave.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BeitModel

from visual_tokenizer.data.batches import PictureSet
from visual_tokenizer.errors import UserError
from visual_tokenizer.semantics.base import View, require_scikit_learn
from visual_tokenizer.semantics.knn import nearest_classes
from visual_tokenizer.semantics.linear_probe import LinearProbe, LinearProbeConfig

PIXEL_SIDE = 32
"""Larger pictures are brought to this side before their pixels are compared."""


@dataclass(frozen=True)
class LabelledFeatures:
    """Pictures of a split."""

    views: dict[str, Tensor]
    """By name, (P, D) float32: `pixels`, and of each network and block `NETWORK_layer_N`."""
    labels: list[str]
    """P classes."""


def default_layers(blocks: int) -> list[int]:
    """Return the block after three quarters of all and the last, counted from 1."""
    return sorted({math.ceil(blocks * 3 / 4), blocks})


@torch.no_grad()
def average_patches(network: BeitModel, pixels: Tensor, layers: list[int]) -> list[Tensor]:
    """Return a vector a picture (B, D) of each block in `layers`, counted from 1, of pixels (B, 3, H, W) in [-1, 1]."""
    states = network(pixels, output_hidden_states=True).hidden_states
    return [states[layer][:, 1:].mean(1) for layer in layers]


def labelled_features(
    networks: dict[str, BeitModel], pictures: PictureSet, label_column: str, layers: list[int], device: torch.device
) -> LabelledFeatures:
    """Compute the features of all pictures that have a label.

    Raises:
        UserError: the source has no such column, no picture has a label, or scikit-learn is not installed.
    """
    require_scikit_learn()
    views: dict[str, list[Tensor]] = {}
    labels: list[str] = []
    for batch in pictures.batches(64):
        known = sorted({name for found in batch["labels"] for name in found})
        if label_column not in known:
            raise UserError(
                f"probe.label_column must be a column of labels of the source "
                f"({', '.join(known) or 'it has none'}), got {label_column!r}"
            )
        found = [sample[label_column] for sample in batch["labels"]]
        rows = torch.tensor([row for row, label in enumerate(found) if label], dtype=torch.int64)
        if not len(rows):
            continue
        labels += [found[row] for row in rows.tolist()]
        pixels = batch["pixels"][rows]
        side = min(PIXEL_SIDE, pixels.shape[-1])
        views.setdefault("pixels", []).append(F.interpolate(pixels, (side, side), mode="area").flatten(1))
        for name, network in networks.items():
            for layer, vectors in zip(layers, average_patches(network, pixels.to(device), layers), strict=True):
                views.setdefault(f"{name}_layer_{layer}", []).append(vectors.float().cpu())
    if not labels:
        raise UserError(f"no picture of the split has a label in the column {label_column!r}")
    return LabelledFeatures({name: torch.cat(parts) for name, parts in views.items()}, labels)


def probe(train: LabelledFeatures, heldout: LabelledFeatures, neighbours: int, seed: int) -> dict[str, float]:
    """Return `knn_accuracy_VIEW` and `linear_accuracy_VIEW` on the held-out pictures, and `chance`.

    Channels are standardised over the training pictures. The classifier is a logistic regression whose penalty is
    chosen on a part of the training pictures. A held-out picture of a class that no training picture has counts as
    wrong; chance is the share of the commonest class.

    Raises:
        UserError: the training pictures are of one class.
    """
    classes = sorted(set(train.labels))
    if len(classes) < 2:
        raise UserError(f"probe.label_column must tell training pictures apart, got one class, {classes[0]!r}")
    numbers = {name: number for number, name in enumerate(classes)}
    owned, wanted = (
        torch.tensor([numbers.get(label, -1) for label in part.labels], dtype=torch.int64) for part in (train, heldout)
    )
    values = {"chance": (wanted == torch.bincount(owned).argmax()).double().mean().item()}
    linear = LinearProbe(LinearProbeConfig(), seed)
    for name in train.views:
        view = View(*(part.views[name].double().numpy() for part in (train, heldout))).standardised()
        voted = nearest_classes(view, owned, neighbours)
        values[f"knn_accuracy_{name}"] = (voted == wanted).double().mean().item()
        values[f"linear_accuracy_{name}"] = linear.accuracy(view, owned.numpy(), wanted.numpy())
    return values
