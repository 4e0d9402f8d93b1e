"""What every measure of a merged model has in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from mmlm.generation.images import generate_images
from mmlm.processing import MultimodalProcessor
from mmlm.scores.picture_bank import PICTURES_AT_A_TIME, PictureBank
from visual_tokenizer.data.sources.base import DataSourceError, Source
from visual_tokenizer.registry import PartConfig

TRAIN, HELDOUT = "train", "heldout"


@dataclass(frozen=True)
class Pairs:
    """Captions with their pictures, P of them."""

    captions: list[str]
    """What each picture shows; not empty."""
    keys: list[str]
    """The source's names of the pictures."""
    images: list[Image.Image]
    """The pictures as the source gives them, RGB."""
    indices: Tensor
    """(P, *grid) or (P, *grid, num_codebooks) int64, what the visual tokenizer makes of them."""

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(eq=False)
class Subject:
    """A merged model and what it is measured on; whatever several measures need is made once, when it is asked for."""

    model: PreTrainedModel
    """Merged causal LM in eval mode."""
    processor: MultimodalProcessor
    """The one of the same folder, with its visual tokenizer."""
    source: Source
    """Pictures and captions."""
    _: KW_ONLY
    split: str = "train"
    """Of the source; gives prompts and neighbours."""
    num_pairs: int = 64
    """Captions that are drawn, and pairs of each split that are measured, at most."""
    max_pictures: int = 20_000
    """Pictures of the split that are looked through, the first ones."""
    batch_size: int = 16
    """Drawings, or sequences, at a time."""
    seed: int = 0
    """Of the drawings."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of `generate_images`."""
    show_progress: bool = False
    """Draw bars on stderr."""

    def __post_init__(self) -> None:
        self._drawings: dict[str, list[Image.Image]] = {}
        self._pairs: dict[str, Pairs] = {}

    @cached_property
    def splits(self) -> list[str]:
        """The split, and beside train the pictures that were held out of it, where the source holds some out."""
        holds_out = self.source.has_own_heldout or self.source.config.heldout_fraction > 0
        if self.split != TRAIN or not holds_out or next(self.samples(HELDOUT), None) is None:
            return [self.split]
        return [self.split, HELDOUT]

    def samples(self, split: str) -> Iterator[dict[str, Any]]:
        """Yield the samples of a split that have a caption, the first `max_pictures` of them."""
        captioned = (sample for sample in self.source.load(split) if sample["caption"].strip())
        yield from islice(captioned, self.max_pictures)

    @cached_property
    def bank(self) -> PictureBank:
        """The pictures of the split as vectors.

        Raises:
            DataSourceError: the split has no pictures with captions.
        """
        bank = PictureBank(self.processor.image_processor, self.model.device)
        samples = self.samples(self.split)
        while batch := list(islice(samples, PICTURES_AT_A_TIME)):
            bank.add(batch)
        if not bank.captions:
            raise DataSourceError("data: the split has no pictures with captions to draw")
        return bank

    def pairs(self, split: str) -> Pairs:
        """Return the pairs of a split that are measured.

        Of `self.split`, the first pictures of captions spread evenly over its distinct captions; of the held-out
        pictures beside it, the first ones.
        """
        if split not in self._pairs:
            if split == self.split:
                captions = self.bank.captions
                chosen = spread(list(dict.fromkeys(captions)), self.num_pairs)
                places = [captions.index(caption) for caption in chosen]
            else:
                places = list(range(self.num_pairs))
            self._pairs[split] = self._read(split, places)
        return self._pairs[split]

    def drawings(self, split: str) -> list[Image.Image]:
        """Return the model's drawings of the captions of `pairs(split)`."""
        if split not in self._drawings:
            self._drawings[split] = generate_images(
                self.model,
                self.processor,
                self.pairs(split).captions,
                seed=self.seed,
                batch_size=self.batch_size,
                show_progress=self.show_progress,
                **self.sampling,
            )
        return self._drawings[split]

    def reconstructions(self, split: str) -> list[Image.Image]:
        """Return the visual tokenizer's pictures of `pairs(split)`: the most that a language model can reach."""
        return self.processor.decode_indices(self.pairs(split).indices)

    def compared(self, split: str) -> dict[str, list[Image.Image]]:
        """Return drawings, reconstructions and originals of `pairs(split)`."""
        return {
            "drawings": self.drawings(split),
            "reconstructions": self.reconstructions(split),
            "originals": self.pairs(split).images,
        }

    def pixels(self, images: list[Image.Image]) -> list[Tensor]:
        """Return pictures at the size that the model draws, in parts (B, 3, H, W) on its device."""
        pixels: Tensor = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        return list(pixels.to(self.model.device).split(PICTURES_AT_A_TIME))

    def _read(self, split: str, places: list[int]) -> Pairs:
        """Return the pictures at `places`: read again, so that not all are held in memory."""
        wanted = set(places)
        numbered = enumerate(islice(self.samples(split), max(places) + 1))
        found = {place: sample for place, sample in numbered if place in wanted}
        samples = [found[place] for place in places if place in found]
        images = [sample["image"] for sample in samples]
        return Pairs(
            captions=[sample["caption"] for sample in samples],
            keys=[str(sample["key"]) for sample in samples],
            images=images,
            indices=self.processor.encode_images(images),
        )


def spread(items: list[str], count: int) -> list[str]:
    """Return at most `count` of `items`, evenly spread over them, in order."""
    count = min(count, len(items))
    return [items[(2 * number + 1) * len(items) // (2 * count)] for number in range(count)]


@dataclass(kw_only=True)
class MeasureConfig(PartConfig, package="mmlm.measures"):
    """No field is common to all measures."""


@dataclass
class Findings:
    """What a measure found."""

    values: dict[str, Any]
    """In plain JSON types, with the numbers of pictures, tokens or candidates that they stand on."""
    rows: list[tuple[str, str]]
    """What the terminal shows: a name and a value with its unit, each."""
    sheets: dict[str, Image.Image] = field(default_factory=dict)
    """Name of a PNG file without its ending → sheet of pictures."""


class Measure:
    """One way to look at a merged model."""

    Config: ClassVar[type[MeasureConfig]]

    def __init__(self, config: MeasureConfig) -> None:
        self.config: Any = config

    def measure(self, subject: Subject) -> Findings:
        """Measure; the subject's model keeps its weights and its mode."""
        raise NotImplementedError

    def protocol(self) -> dict[str, Any]:
        """Return what two values must have in common to be compared: type, fields and what is measured."""
        meaning = (type(self).__doc__ or "").strip().splitlines()[0]
        return {**self.config.to_dict(), "measures": meaning}


PART = Measure
