"""What a tokenizer's tokens mean, measured on a set of pictures that have classes or captions."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from visual_tokenizer.backbones.base import Backbone, load_backbone, require_pictures
from visual_tokenizer.data.batches import DataSection, PictureSet
from visual_tokenizer.data.sources.base import DataSourceError, Source
from visual_tokenizer.errors import UserError
from visual_tokenizer.evaluation.meaning_recipe import LEAST, SemanticSection
from visual_tokenizer.metrics.base import round_pixels
from visual_tokenizer.modeling import VisualTokenizer
from visual_tokenizer.outputs import TokenizerOutput
from visual_tokenizer.runs.processes import on_first_process
from visual_tokenizer.semantics.base import (
    SemanticData,
    SemanticMeasure,
    SemanticMeasureConfig,
    TokenizedPictures,
    join_pictures,
)
from visual_tokenizer.text_encoders.base import TextEncoder, TextEncoderConfig

SPLITS = ("train", "heldout")
COLUMNS = ("codes", "tokens", "teacher", "chance")
"""Views of a picture, and what chance gives, in the order of the table."""


@dataclass(frozen=True)
class MeasuredPictures:
    """The pictures of both splits that are measured."""

    source: Source
    section: DataSection
    most: int | None
    """Of each split, spread evenly over it; None for all."""
    image_size: int
    """Side in pixels."""
    batch_size: int
    """Pictures of one pass on one process."""

    def batches(self, split: str, process: int = 0, processes: int = 1) -> Iterator[dict[str, Any]]:
        """Return the batches of a process's part of a split."""
        sizes: dict[str, Any] = {"image_size": self.image_size, "max_pictures": self.most}
        pictures = PictureSet(self.source, split, self.section, process=process, processes=processes, **sizes)
        return pictures.batches(self.batch_size)

    def pixels(self, numbers: Collection[int]) -> dict[int, Tensor]:
        """Return pixels (3, H, W) in [-1, 1] of some pictures, the training ones numbered first."""
        batches = (batch for split in SPLITS for batch in self.batches(split))
        everything = enumerate(pixels for batch in batches for pixels in batch["pixels"])
        return {number: pixels.clone() for number, pixels in everything if number in numbers}


@dataclass(frozen=True)
class SemanticReport:
    """What `measure_semantics` found."""

    values: dict[str, float]
    """By name, `MEASURE_VIEW`; the same on all processes."""
    protocol: dict[str, Any]
    """What two reports must have in common to be compared."""
    left_out: dict[str, str]
    """Measures that the pictures don't allow, and why."""
    data: SemanticData
    """All pictures, on every process."""
    pictures: MeasuredPictures
    """Where they came from."""

    def summary(self) -> str:
        """Return one line on what the values hold for."""
        told = self.protocol
        neighbours = [f"k = {measure['neighbours']}" for measure in told["measures"] if measure["type"] == "knn"]
        error = 0.5 / told["heldout_pictures"] ** 0.5
        known = [f"classes: {len(told['classes'])} of {told['label']}"] if told["classes"] else []
        counts = [
            f"{told['train_pictures']:,} training pictures",
            f"{told['heldout_pictures']:,} held-out ones (standard error of a share {error:.3f} at most)",
        ]
        return ", ".join([*counts, *known, *neighbours])

    def entry(self) -> dict[str, Any]:
        """Return what a report's JSON holds."""
        return {"values": self.values, "left_out": self.left_out, "protocol": self.protocol}


@torch.no_grad()
def measure_semantics(
    tokenizer: VisualTokenizer, pictures: MeasuredPictures, section: SemanticSection, accelerator: Accelerator
) -> SemanticReport:
    """Encode the training and held-out pictures on all processes; fit and measure on the first.

    Every process must call it.

    Args:
        tokenizer: on the accelerator's device, in evaluation mode.
        pictures: what is encoded.

    Raises:
        ConfigError: a wrong measure.
        UserError: too few pictures, a source of clips, or a measure that was asked for finds no class or caption.
    """
    source = pictures.source
    if source.config.clip_frames:
        raise UserError("semantic: meaning is measured on pictures, but the source gives clips")
    column = label_column(source, section.label)
    network: Backbone = load_backbone(section.network, section.weights)
    require_pictures(network)
    network.to(accelerator.device)
    text_encoder: TextEncoder | None = None
    if any("captions" in _part(config).needs for config in section.measure_configs()):
        text_encoder = TextEncoderConfig.family.build(section.text_encoder).to(accelerator.device)
    sets = {}
    for split in SPLITS:
        batches = pictures.batches(split, accelerator.process_index, accelerator.num_processes)
        described = (_described(tokenizer, network, text_encoder, batch, column) for batch in batches)
        sets[split] = _gathered(list(described), accelerator)
    data = SemanticData(sets["train"], sets["heldout"], tokenizer.codebook_size, text_encoder)
    measures, left_out = _possible(section, data)
    values = on_first_process(accelerator, lambda: _values(measures, data))
    protocol = {
        "label": column,
        "classes": data.having(["labels"]).classes,
        "train_pictures": len(data.train),
        "heldout_pictures": len(data.heldout),
        "source": source.config.to_dict(),
        "resize_filter": pictures.section.transform.resize_filter,
        "crop": "center",
        "image_size": pictures.image_size,
        "fit": "on the split train; measured on the split heldout",
        "codes": "mean over a picture's tokens of the quantizer's codes",
        "tokens": "TF-IDF of the indices, unit length, codebooks side by side",
        "teacher": {"network": section.network, "weights_digest": network.weights_digest, "of": "embedding"},
        "text_encoder": None if text_encoder is None else _told(section.text_encoder, text_encoder),
        "seed": section.seed,
        "arithmetic": "networks float32, measures float64",
        "measures": [measure.protocol() for measure in measures],
    }
    return SemanticReport(values, protocol, left_out, data, pictures)


def label_column(source: Source, wanted: str | None) -> str | None:
    """Return the column of classes that is meant; None where the source has none.

    Raises:
        DataSourceError: the source has no such column.
    """
    known = source.label_columns
    if wanted is not None and wanted not in known:
        listed = f"one of {', '.join(known)}" if known else "null, for it gives no classes"
        raise DataSourceError(f"semantic.label must be, for the source {source.config.type}, {listed}, got {wanted!r}")
    return wanted or (known[0] if known else None)


def mean_codes(output: TokenizerOutput) -> Tensor:
    """Return the mean of each picture's own codes, (B, C) float32."""
    codes = output.codes.float()
    if output.present is None:
        return codes.mean(1)
    return (codes * output.present[..., None]).sum(1) / output.present.sum(1, keepdim=True)


def _described(
    tokenizer: VisualTokenizer,
    network: Backbone,
    text_encoder: TextEncoder | None,
    batch: Mapping[str, Any],
    column: str | None,
) -> TokenizedPictures:
    pixels = batch["pixels"].to(tokenizer.device)
    output = tokenizer(pixels)
    captions = list(batch["caption"])
    indices = output.indices.reshape(len(pixels), -1, tokenizer.num_codebooks)
    return TokenizedPictures(
        codes=mean_codes(output).cpu(),
        indices=indices.to(torch.int32).cpu(),
        features=network.embedding(round_pixels(pixels)).float().cpu(),
        texts=text_encoder(captions).float().cpu() if text_encoder and any(captions) else torch.zeros(len(pixels), 0),
        labels=[labels[column] if column else "" for labels in batch["labels"]],
        captions=captions,
    )


def _gathered(own: Sequence[TokenizedPictures], accelerator: Accelerator) -> TokenizedPictures:
    """Return the pictures of all processes in the order of the set, of which process p has every n-th from p on."""
    mine = join_pictures(own) if own else None
    if accelerator.num_processes > 1:
        parts: list[TokenizedPictures | None] = gather_object([mine])
    else:
        parts = [mine]
    found = [(part, process) for process, part in enumerate(parts) if part is not None]
    count = sum(len(part) for part, _ in found)
    if count < LEAST:
        raise UserError(f"semantic: a split needs {LEAST} pictures or more, got {count}")
    places = np.concatenate([np.arange(len(part)) * len(parts) + process for part, process in found])
    return join_pictures([part for part, _ in found]).select(np.argsort(places, kind="stable").tolist())


def _possible(section: SemanticSection, data: SemanticData) -> tuple[list[SemanticMeasure], dict[str, str]]:
    """Return the measures for which there are pictures, and why others are left out."""
    family = SemanticMeasureConfig.family
    measures, left_out = [], {}
    for config in section.measure_configs():
        measure: SemanticMeasure = family.build(config, seed=section.seed)
        if why := _lacking(measure.needs, data):
            if section.measures is not None:
                raise UserError(f"semantic.measures: {config.type} can't be measured: {why}")
            left_out[config.type] = why
        else:
            measures.append(measure)
    return measures, left_out


def _part(config: SemanticMeasureConfig) -> type[SemanticMeasure]:
    return SemanticMeasureConfig.family.get(config.type)


def _told(config: TextEncoderConfig, text_encoder: TextEncoder) -> dict[str, Any]:
    """Return what tells a text encoder from others."""
    digest = hashlib.sha256()
    for name, value in text_encoder.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return {"type": config.type, "max_length": config.max_length, "weights_digest": digest.hexdigest()[:16]}


def _lacking(needs: Sequence[str], data: SemanticData) -> str:
    """Return what keeps a measure from these pictures; empty where nothing does."""
    known = data.having(needs)
    for split, part in (("training", known.train), ("held-out", known.heldout)):
        if len(part) < LEAST:
            return f"{len(part)} {split} pictures have {' and '.join(needs)}, {LEAST} are needed"
    if "labels" in needs and len(known.classes) < 2:
        return f"the training pictures are of one class, {known.classes[0]!r}"
    return ""


def _values(measures: Iterable[SemanticMeasure], data: SemanticData) -> dict[str, float]:
    known: dict[tuple[str, ...], SemanticData] = {}
    values: dict[str, float] = {}
    for measure in measures:
        if measure.needs not in known:
            known[measure.needs] = data.having(measure.needs)
        values |= measure.measure(known[measure.needs])
    return values


def semantic_rows(values: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the values by measure and, in the order of `COLUMNS`, view."""
    measures = dict.fromkeys(name.rpartition("_")[0] for name in values)
    return {
        measure: {column: values[f"{measure}_{column}"] for column in COLUMNS if f"{measure}_{column}" in values}
        for measure in measures
    }


def semantic_table(values: Mapping[str, float]) -> str:
    """Return one row a measure, one column a view and one for chance, as Markdown."""
    rows = semantic_rows(values)
    lines = [f"| measure | {' | '.join(COLUMNS)} |", "|---|" + "---:|" * len(COLUMNS)]
    for measure, row in rows.items():
        cells = [f"{row[column]:.3f}" if column in row else "" for column in COLUMNS]
        lines.append(f"| {measure} | {' | '.join(cells)} |")
    return "\n".join(lines)
