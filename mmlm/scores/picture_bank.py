"""The pictures of a split as vectors, in which drawings are looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from visual_tokenizer.backbones.base import load_backbone
from visual_tokenizer.processing import VisualTokenizerImageProcessor
from visual_tokenizer.semantics.text_retrieval import caption_ranks, retrieval_embedding

NETWORK = "efficientnet_lite0"
PICTURES_AT_A_TIME = 64


@dataclass
class Accuracy:
    """Share of pictures among whose nearest pictures of the bank is one of the same caption, in [0, 1]."""

    top1: float
    """The nearest one."""
    top5: float
    """One of the five nearest."""


class PictureBank:
    """Embeddings, captions and keys of pictures at the size that the model draws.

    Args:
        image_processor: brings pictures to that size.
        device: where the network runs; the embeddings stay on the CPU.
    """

    def __init__(self, image_processor: VisualTokenizerImageProcessor, device: torch.device) -> None:
        self.image_processor, self.device = image_processor, device
        self.network = load_backbone(NETWORK).to(device)
        self.captions: list[str] = []
        self.keys: list[str] = []
        self._embeddings: list[Tensor] = []

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Return (B, D) float32 embeddings."""
        found = []
        for start in range(0, len(images), PICTURES_AT_A_TIME):
            part = list(images[start : start + PICTURES_AT_A_TIME])
            pixels = self.image_processor(part, return_tensors="pt")["pixel_values"]
            found.append(retrieval_embedding(self.network, pixels.to(self.device)).cpu())
        return torch.cat(found)

    def add(self, samples: Sequence[dict[str, Any]]) -> None:
        """Take in samples of a source."""
        self._embeddings.append(self.embed([sample["image"] for sample in samples]))
        self.captions += [sample["caption"] for sample in samples]
        self.keys += [str(sample["key"]) for sample in samples]

    def look_up(self, images: Sequence[Image.Image], captions: Sequence[str]) -> tuple[Accuracy, list[int]]:
        """Return the accuracy of pictures of `captions`, and for each the place, from 1, of its caption."""
        bank = torch.cat(self._embeddings)
        ranks = caption_ranks(self.embed(images), captions, bank, self.captions)
        top1, top5 = (float(((ranks >= 1) & (ranks <= k)).double().mean()) for k in (1, 5))
        return Accuracy(top1=top1, top5=top5), ranks.tolist()

    def chance(self, captions: Sequence[str]) -> Accuracy:
        """Return the accuracy to be expected where the nearest pictures are random ones."""
        total = len(self.captions)
        hits = {1: 0.0, 5: 0.0}
        for caption in captions:
            same = self.captions.count(caption)
            for k in hits:
                missed = 1.0
                for taken in range(min(k, total)):
                    missed *= max(0, total - same - taken) / (total - taken)
                hits[k] += (1 - missed) / len(captions)
        return Accuracy(top1=hits[1], top5=hits[5])
