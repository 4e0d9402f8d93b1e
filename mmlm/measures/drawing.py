"""Drawings of captions looked up among the training pictures.

Protocol: captions spread evenly over the distinct captions of the split are drawn with one seed. A frozen
EfficientNet-Lite0 embeds every picture; a drawing counts when a picture of the same caption is among its one (five)
nearest of all pictures of the split. Beside it stand the same numbers for the visual tokenizer's reconstructions of
those pictures, which is the most that a language model on top of it can reach, and for pictures taken at random.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from PIL import Image

from mmlm.generation.grid import image_grid
from mmlm.measures.base import Findings, Measure, MeasureConfig, Subject
from mmlm.scores.likelihood import tally_by_kind
from mmlm.scores.picture_bank import NETWORK

LEAST_CELL = 192
"""Pixels of the longer side of a picture on the sheet, at least."""


@dataclass(kw_only=True)
class DrawingConfig(MeasureConfig):
    """The drawings' settings are those of the whole evaluation."""


class Drawing(Measure):
    """How often a drawing is nearest to a picture of its caption, in [0, 1]; and losses of caption → picture."""

    Config = DrawingConfig

    def measure(self, subject: Subject) -> Findings:
        pairs, bank = subject.pairs(subject.split), subject.bank
        drawn = subject.drawings(subject.split)
        generated, ranks = bank.look_up(drawn, pairs.captions)
        reconstructed, _ = bank.look_up(subject.reconstructions(subject.split), pairs.captions)
        accuracies = {"generated": generated, "reconstructed": reconstructed, "chance": bank.chance(pairs.captions)}
        losses = {split: self._losses(subject, split) for split in subject.splits}
        prompts = [
            {"caption": caption, "key": key, "rank": rank}
            for caption, key, rank in zip(pairs.captions, pairs.keys, ranks, strict=True)
        ]
        values = {
            **{name: asdict(accuracy) for name, accuracy in accuracies.items()},
            "losses": losses,
            "prompts": prompts,
            "num_pictures": len(bank.captions),
            "network": NETWORK,
        }
        rows = [
            (name, f"top-1 {accuracy.top1:6.1%}   top-5 {accuracy.top5:6.1%}") for name, accuracy in accuracies.items()
        ]
        beside = [side_by_side(*both) for both in zip(drawn, pairs.images, strict=True)]
        sheet = image_grid(beside, pairs.captions, cell_size=max(LEAST_CELL, beside[0].width))
        return Findings(values, rows + [_loss_row(*item) for item in losses.items()], {"evaluation": sheet})

    def _losses(self, subject: Subject, split: str) -> dict[str, float | None]:
        pairs = subject.pairs(split)
        sequences = [
            subject.processor.caption_to_image(*pair) for pair in zip(pairs.captions, pairs.indices, strict=True)
        ]
        found = tally_by_kind(subject.model, subject.processor.layout, sequences, subject.batch_size)
        return {kind: tally.loss for kind, tally in found.items()}


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return one picture of two, the right one scaled to the height of the left one."""
    right = right.resize((max(1, round(right.width * left.height / right.height)), left.height))
    both = Image.new("RGB", (left.width + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both


def _loss_row(split: str, losses: dict[str, float | None]) -> tuple[str, str]:
    found = "   ".join(f"{kind} {loss:.3f}" for kind, loss in losses.items() if loss is not None)
    return f"loss, {split}", f"{found}  nats a token"
