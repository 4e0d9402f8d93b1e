"""How well drawings fit their captions, by a linear map from picture embeddings to sentence embeddings.

A stand-in for CLIP's score made of small networks that never saw pictures and texts together, so it is named after
what it is: ridge regression from EfficientNet-Lite0's embedding of a picture to MiniLM's of its caption, fitted on the
pictures of the split but for those that are measured and others of the same captions. The score is the cosine between
a picture's prediction and its caption's embedding, both centred by the fitted captions' mean. What the same map gives
for the originals is its ceiling, what it gives for captions of other pictures its floor: read the drawings between the
two.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from PIL import Image
from torch import Tensor

from mmlm.measures.base import Findings, Measure, MeasureConfig, Subject
from mmlm.scores.picture_bank import PICTURES_AT_A_TIME
from visual_tokenizer.backbones.base import load_backbone
from visual_tokenizer.errors import UserError
from visual_tokenizer.metrics.base import round_pixels
from visual_tokenizer.registry import Family

PICTURE_NETWORK = "efficientnet_lite0"
TEXT_NETWORK = "minilm"


@dataclass(kw_only=True)
class EmbeddingRegressionConfig(MeasureConfig):
    """Configures the map."""

    ridge: Annotated[float, Gt(0)] = 1.0
    """Penalty of the map's squares, as a share of the mean variance of an element of the embeddings."""
    training_pictures: Annotated[int, Ge(2)] = 4096
    """Pictures on which the map is fitted, at most."""


class RidgeMap(NamedTuple):
    """A linear map with its centres."""

    weight: Tensor
    """(D, E)."""
    mean_x: Tensor
    """(D,)."""
    mean_y: Tensor
    """(E,)."""

    def cosines(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the cosine of each prediction with its `y`, both centred, (N,), of x (N, D) and y (N, E)."""
        return F.cosine_similarity((x.double() - self.mean_x) @ self.weight, y.double() - self.mean_y, dim=1)


def fit_ridge(x: Tensor, y: Tensor, ridge: float) -> RidgeMap:
    """Return the map that minimises |x W - y|² + ridge · N · mean variance(x) · |W|²; x (N, D), y (N, E), centred."""
    x, y = x.double(), y.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    gram = x.T @ x
    penalty = ridge * gram.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    gram.diagonal().add_(penalty)
    return RidgeMap(torch.linalg.solve(gram, x.T @ y), mean_x, mean_y)


class EmbeddingRegression(Measure):
    """Mean cosine between captions and what a ridge map predicts of pictures: drawings, reconstructions, originals.

    Raises:
        UserError: fewer than 2 pictures to fit on.
        MissingWeightsError: the weights of MiniLM or EfficientNet-Lite0 are not on this machine.
    """

    Config = EmbeddingRegressionConfig

    def measure(self, subject: Subject) -> Findings:
        pictures = load_backbone(PICTURE_NETWORK).to(subject.model.device)
        texts: Any = Family("visual_tokenizer.text_encoders").build({"type": TEXT_NETWORK}).to(subject.model.device)

        @torch.no_grad()
        def embed(images: list[Image.Image]) -> Tensor:
            parts = [pictures.embedding(round_pixels(part)) for part in subject.pixels(images)]
            return torch.cat([part.float().cpu() for part in parts])

        measured = {caption for split in subject.splits for caption in subject.pairs(split).captions}
        x, y = [], []
        unmeasured = (sample for sample in subject.samples(subject.split) if sample["caption"] not in measured)
        others = islice(unmeasured, self.config.training_pictures)
        while batch := list(islice(others, PICTURES_AT_A_TIME)):
            x.append(embed([sample["image"] for sample in batch]))
            y.append(texts([sample["caption"] for sample in batch]).cpu())
        fitted = sum(map(len, x))
        if fitted < 2:
            raise UserError(
                f"embedding_regression fits its map on pictures of other captions than the {len(measured)} measured "
                f"ones; the split has {fitted}: lower num_prompts"
            )
        ridge_map = fit_ridge(torch.cat(x), torch.cat(y), self.config.ridge)
        values: dict[str, Any] = {
            "picture_network": PICTURE_NETWORK,
            "text_network": TEXT_NETWORK,
            "fitted_on": fitted,
        }
        rows = []
        for split in subject.splits:
            pairs = subject.pairs(split)
            wanted = texts(pairs.captions).cpu()
            sets = {name: embed(images) for name, images in subject.compared(split).items()}
            sets["other_originals"] = sets["originals"].roll(-1, 0)
            found = {name: ridge_map.cosines(embedded, wanted) for name, embedded in sets.items()}
            values[split] = {"pictures": len(pairs)} | {name: float(one.mean()) for name, one in found.items()}
            rows += [(f"{name.replace('_', ' ')}, {split}", f"cosine {values[split][name]:.4f}") for name in found]
        return Findings(values, rows)
