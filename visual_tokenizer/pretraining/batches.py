"""Pictures with masks. Which patches of a picture are hidden depends on the seed and on its number in the run alone.

The number counts the pictures of all steps and processes, so a run that goes on, or goes on with another number of
processes, hides the same patches; a picture is hidden otherwise each time it comes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset

from visual_tokenizer.data.batches import DataSection, PictureSet, Share, training_batches
from visual_tokenizer.data.sources.base import Source
from visual_tokenizer.data.transforms import bytes_to_pixels, pixels_to_bytes
from visual_tokenizer.pretraining.masking import BlockMasking


class MaskedBatches:
    """One process's batches from a step on: `pixel_values` (B, 3, H, W) in [-1, 1], `bool_masked_pos` (B, N).

    Args:
        source: a built source; its "train" split is read.
        section: the recipe's section `data`.
        masking: draws the masks.
        image_size: side in pixels.
        seed: of order and augmentation.
        share: what this process takes.
        first_step: steps that are already done.
        steps: of the whole run.
    """

    def __init__(
        self,
        source: Source,
        section: DataSection,
        masking: BlockMasking,
        *,
        image_size: int,
        seed: int,
        share: Share,
        first_step: int,
        steps: int,
    ) -> None:
        self.source, self.section, self.masking = source, section, masking
        self.image_size, self.seed, self.share = image_size, seed, share
        self.first_step, self.steps = first_step, steps

    def __len__(self) -> int:
        """Return the passes of the whole run, those that are done included."""
        return self.steps * self.share.passes

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        settings = {"image_size": self.image_size, "seed": self.seed, "share": self.share}
        batches = training_batches(self.source, self.section, first_step=self.first_step, **settings)  # type: ignore[arg-type]
        for step in range(self.first_step, self.steps):
            for number in range(self.share.passes):
                own = self.share.slice(number)
                before = step * self.share.step_size
                masks = [self.masking(before + place) for place in range(own.start, own.stop)]
                pixels = next(batches)["pixels"]
                yield {"pixel_values": pixels, "bool_masked_pos": torch.stack(masks).flatten(1)}


class HeldoutPictures(Dataset):
    """Held-out pictures in memory, as bytes and in their order, each with a mask that stays the same."""

    def __init__(self, pictures: PictureSet, masking: BlockMasking) -> None:
        self.table = torch.cat([pixels_to_bytes(batch["pixels"]) for batch in pictures.batches(64)])
        self.masking = masking

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "pixel_values": bytes_to_pixels(self.table[index]),
            "bool_masked_pos": self.masking(index).flatten(),
        }

    def spread(self, count: int) -> tuple[Tensor, Tensor]:
        """Return pixels (B, 3, H, W) and masks (B, N) of at most `count` pictures, spread evenly over the set."""
        count = min(count, len(self))
        chosen = [self[number * len(self) // count] for number in range(count)]
        pixels, masks = ([item[name] for item in chosen] for name in ("pixel_values", "bool_masked_pos"))
        return torch.stack(pixels), torch.stack(masks)
