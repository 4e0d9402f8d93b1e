"""Training batches from any step on: what a step sees depends on the step, the seed and the batch size alone.

A step's `batch_size` pictures are the next stretch of the epoch's order, whatever the number of processes and passes;
each process takes its part. Going on at a later step costs nothing for a map-style set; of a stream the rows before it
are read again, but not decoded.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import datasets
import torch
from annotated_types import Ge
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info

from visual_tokenizer.data.loading import PixelDataset, SampleKey, collate, epoch_order
from visual_tokenizer.data.sources.base import DataSourceError, Source, SourceConfig
from visual_tokenizer.data.streaming import StreamCollator
from visual_tokenizer.data.transforms import TransformConfig
from visual_tokenizer.fields.decoding import decode_config
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.recipe import read_yaml
from visual_tokenizer.runs.processes import leave_signals


@dataclass(kw_only=True)
class DataSection(Section):
    """Where pictures come from and how they are loaded."""

    renamed: ClassVar[Mapping[str, str | None]] = {"batch_size": None}  # but in trainings, whose recipes take it

    source: SourceConfig = field(default_factory=lambda: SourceConfig.family.config({"type": "openmoji"}))
    """Set of pictures."""

    transform: TransformConfig = field(default_factory=TransformConfig)
    """Resize, crop and flip of the training pictures; held-out ones are always cropped in the centre."""

    num_workers: Annotated[int, Ge(0)] = 0
    """Loader processes of each training process. Unused while all pictures fit in memory."""

    cache_megabytes: Annotated[float, Ge(0)] = 2048
    """Memory for decoded pictures of a centre-cropped set, in 10⁶ bytes a process; 0 for none."""


SHUFFLE_BUFFER = 1024


@dataclass(frozen=True)
class Share:
    """Which part of each step's pictures a process takes: `passes` times `size`, with those of all `processes` between.

    `size` is the pictures of one pass on one process.
    """

    process: int
    processes: int
    passes: int
    size: int

    @property
    def pass_size(self) -> int:
        """Pictures of one pass over all processes."""
        return self.processes * self.size

    @property
    def step_size(self) -> int:
        """Pictures of one step over all processes and passes."""
        return self.passes * self.pass_size

    def slice(self, number: int) -> slice:
        """Return this process's place within pass `number` of a step."""
        first = number * self.pass_size + self.process * self.size
        return slice(first, first + self.size)


class StepSampler(Sampler[list[SampleKey]]):
    """The keys of one process's passes, from `first_step` on and without end."""

    def __init__(self, length: int, seed: int, share: Share, first_step: int) -> None:
        self.length = length
        self.seed = seed
        self.share = share
        self.first_step = first_step
        self.batch_size = share.step_size
        self.steps_per_epoch = length // self.batch_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        loaded, order = None, torch.empty(0)
        for step in itertools.count(self.first_step):
            epoch, number = divmod(step, self.steps_per_epoch)
            if epoch != loaded:
                loaded, order = epoch, epoch_order(self.length, self.seed, epoch)
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            for index in range(self.share.passes):
                yield [SampleKey(epoch, sample) for sample in batch[self.share.slice(index)].tolist()]


class StepStream(IterableDataset):
    """The encoded rows of one process's passes, from pass `first_pass` on and without end.

    Each loader worker reads its own shards epoch after epoch and makes every `workers`-th pass.

    Raises:
        DataSourceError: a worker's shards hold less than one pass.
    """

    def __init__(self, rows: datasets.IterableDataset, share: Share, first_pass: int) -> None:
        self.rows = rows
        self.share = share
        self.first_pass = first_pass

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        worker = get_worker_info()
        skipped = self.first_pass // (worker.num_workers if worker else 1)
        size = self.share.pass_size
        done = 0
        for epoch in itertools.count():
            self.rows.set_epoch(epoch)
            rows = iter(self.rows)
            before = done
            while len(chunk := list(itertools.islice(rows, size))) == size:
                done += 1
                if done > skipped:
                    yield [{**row, "epoch": epoch} for row in chunk[self.share.slice(0)]]
            if done == before:
                raise DataSourceError(f"the stream (or a worker's shards) holds fewer than {size} pictures")


def training_batches(
    source: Source, section: DataSection, *, image_size: int, seed: int, share: Share, first_step: int = 0
) -> Iterator[dict[str, Any]]:
    """Return the endless batches of one process, `share.passes` a step, as `data.loading.collate` makes them.

    Args:
        source: a built source; its "train" split is read.
        section: the recipe's section `data`.
        image_size: side in pixels.
        seed: seed of order and augmentation.
        share: what this process takes.
        first_step: steps that are already done.

    Raises:
        DataSourceError: the split holds fewer pictures than `batch_size`.
    """
    rows = source.load("train")
    # A generator of its own: else to start on the loader would draw from the global one.
    settings: dict[str, Any] = {"generator": torch.Generator(), "pin_memory": torch.cuda.is_available()}
    settings["worker_init_fn"] = leave_signals
    if isinstance(rows, datasets.IterableDataset):
        rows = source.load_encoded("train")
        workers = min(section.num_workers, rows.num_shards)
        surplus = first_step * share.passes % max(workers, 1)
        passes = first_step * share.passes - surplus
        collator = StreamCollator(source, image_size, section.transform, seed, collate)
        stepped = StepStream(rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER), share, passes)
        loader = DataLoader(stepped, batch_size=None, collate_fn=collator, num_workers=workers, **settings)
        return itertools.islice(loader, surplus, None)
    if len(rows) < share.step_size:
        raise DataSourceError(
            f"{source.config.type}: the split 'train' has {len(rows)} pictures, too few for training.batch_size = "
            f"{share.step_size}"
        )
    dataset = PixelDataset(rows, image_size, section.transform, seed, section.cache_megabytes)
    workers = 0 if dataset.table is not None else section.num_workers
    sampler = StepSampler(len(dataset), seed, share, first_step)
    return iter(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers, **settings))


def training_keys(source: Source) -> list[str]:
    """Return the keys of the training pictures in the order of a batch's `index`.

    Raises:
        DataSourceError: the source is a stream, whose pictures have no places.
    """
    rows = source.load_encoded("train")
    if isinstance(rows, datasets.IterableDataset):
        raise DataSourceError(f"teacher.cache_dir must be null for a streamed source, got '{source.config.type}'")
    return rows.with_format(None)["key"][:]


def fixed_pixels(section: DataSection, image_size: int) -> dict[str, Any]:
    """Return what the pixels of a centre-cropped picture depend on beside its key, in plain JSON types."""
    return {
        "source": section.source.to_dict(),
        "resize_filter": section.transform.resize_filter,
        "image_size": image_size,
    }


class PictureSet:
    """One process's part of `max_pictures` of a split, centre-cropped, each picture once.

    They are spread evenly over the split, since sets are often sorted; of a stream they are the first.

    Args:
        source: a built source.
        split: "train", "heldout" or "all".
        section: the recipe's section `data`: filter, workers and memory are used.
        image_size: side in pixels.
        max_pictures: at most so many over all processes; None for all.
        process: this process takes every `processes`-th picture, from this one on.
        processes: their number.

    Raises:
        DataSourceError: the split holds no picture.
    """

    def __init__(
        self,
        source: Source,
        split: str,
        section: DataSection,
        *,
        image_size: int,
        max_pictures: int | None,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        transform = TransformConfig(resize_filter=section.transform.resize_filter, clip_start="center")
        rows = source.load(split)
        self.workers = 0
        if isinstance(rows, datasets.IterableDataset):
            encoded = source.load_encoded(split)
            self.pictures: Any = StreamPart(encoded, process, max_pictures, processes)
            self.collate: Any = StreamCollator(source, image_size, transform, 0, collate)
            return
        if len(rows) == 0:
            raise DataSourceError(f"{source.config.type}: the split '{split}' holds no picture")
        count = len(rows) if max_pictures is None else min(len(rows), max_pictures)
        chosen = [number * len(rows) // count for number in range(process, count, processes)]
        megabytes = section.cache_megabytes
        self.pictures = PixelDataset(rows.select(chosen), image_size, transform, cache_megabytes=megabytes)
        self.collate = collate
        if self.pictures.table is None:
            self.workers = section.num_workers

    def batches(self, batch_size: int) -> Iterator[dict[str, Any]]:
        """Return the batches; the last may be smaller, and there is none where there is no picture."""
        loader = DataLoader(
            self.pictures,
            batch_size=batch_size,
            collate_fn=self.collate,
            num_workers=self.workers,
            generator=torch.Generator(),
        )
        return iter(loader)


class StreamPart(IterableDataset):
    """Every `processes`-th of the first `max_pictures` encoded rows of a stream, from `process` on."""

    def __init__(self, rows: datasets.IterableDataset, process: int, max_pictures: int | None, processes: int) -> None:
        self.rows = rows
        self.bounds = (process, max_pictures, processes)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row in itertools.islice(self.rows, *self.bounds):
            yield {**row, "epoch": 0}


def with_data_of_model(arguments: Sequence[str]) -> list[str]:
    """Put the `data` of the recipe.yaml beside the weights before the arguments, which override it."""
    words = list(arguments)
    model = None
    for index, word in enumerate(words):
        name, is_one_word, value = word.partition("=")
        if name == "--model":
            model = value if is_one_word else "".join(words[index + 1 : index + 2])
    recipe = Path(model or "") / "recipe.yaml"
    if model is None or not recipe.is_file():
        return words
    data = read_yaml(recipe).get("data") or {}
    if isinstance(data, dict):
        data.pop("batch_size", None)  # of the training, where older recipes have it
    if not any(word.startswith("--data") for word in words):
        decode_config(DataSection, data, where=f"{recipe}: data")
    return [f"--data={json.dumps(data)}", *words]
