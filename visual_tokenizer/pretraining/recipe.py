"""What a recipe of masked image modelling says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from visual_tokenizer.pretraining.model_recipe import BeitSection, PatchAggregationSection, check
from visual_tokenizer.registry import ConfigError
from visual_tokenizer.training_recipe import MIXED_PRECISION, DataSection, OptimizerSection


@dataclass(kw_only=True)
class MaskingSection:
    """Which patches are hidden."""

    masked_patches: int | None = None
    """Patches that are hidden; null: 75 of 196, scaled to the grid."""

    min_block_patches: int | None = None
    """Smallest area drawn for a block, in patches; null: 16 of 196, scaled to the grid."""

    min_aspect: float = 0.3
    """Smallest height of a block through its width, and of its width through its height; in (0, 1]."""

    def __post_init__(self) -> None:
        check(0 < self.min_aspect <= 1, "masking.min_aspect", "in (0, 1]", self.min_aspect)


@dataclass(kw_only=True)
class ProbeSection:
    """How frozen features are judged by labels."""

    label_column: str | None = "group"
    """Column of the source that holds the labels; null: features are not judged."""

    layers: list[int] | None = None
    """Blocks whose patches are averaged, counted from 1; null: the one after three quarters, and the last."""

    neighbours: int = 20
    """Training pictures that vote on the label of a held-out one; 1 or more."""

    max_training_pictures: int = 10_000
    """At most so many labelled training pictures; 2 or more."""

    def __post_init__(self) -> None:
        check(self.layers is None or len(self.layers) > 0, "probe.layers", "null or name a block or more", self.layers)
        check(self.neighbours >= 1, "probe.neighbours", "1 or more", self.neighbours)
        check(self.max_training_pictures >= 2, "probe.max_training_pictures", "2 or more", self.max_training_pictures)


@dataclass(kw_only=True)
class PretrainingSection:
    """How long, how precisely, and what is written when."""

    max_steps: int = 10_000
    """Optimiser steps; 1 or more."""

    gradient_accumulation_steps: int = 1
    """Forward and backward passes a step, each on its share of `data.batch_size`; 1 or more."""

    mixed_precision: str = "no"
    """no, bf16 or fp16; the tokenizer computes in float32 in any case."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    compile: bool = False
    """Compile the model with torch.compile."""

    seed: int = 0
    """Seed of weights, sample order, augmentation and masks; 0 or more."""

    log_every_steps: int = 20
    """Steps between log lines, whose values are means over these steps; 1 or more."""

    sample_every_steps: int = 0
    """Steps between grids of predicted held-out pictures; 0 for none but the last."""

    sample_pictures: int = 16
    """Held-out pictures on a grid; 1 or more."""

    evaluate_every_steps: int = 0
    """Steps between measurements of loss and accuracy on the held-out pictures; 0 for none but the last."""

    max_evaluation_pictures: int = 1000
    """At most so many held-out pictures are measured; 1 or more."""

    checkpoint_every_steps: int = 1000
    """Steps between checkpoints; 1 or more."""

    keep_checkpoints: int = 2
    """Newest complete checkpoints that are kept; 1 or more."""

    report_to: list[str] = field(default_factory=list)
    """Trackers of transformers beside log.jsonl: tensorboard, wandb, trackio, …"""

    resume: bool = True
    """Go on from the newest complete checkpoint of `output_dir`; false: refuse a folder that has one."""

    deepspeed: str | None = None
    """DeepSpeed configuration file, for example recipes/deepspeed/zero2.json; null: as the launcher says."""

    def __post_init__(self) -> None:
        for name in (
            "max_steps",
            "gradient_accumulation_steps",
            "log_every_steps",
            "sample_pictures",
            "max_evaluation_pictures",
            "checkpoint_every_steps",
            "keep_checkpoints",
        ):
            check(getattr(self, name) >= 1, f"training.{name}", "1 or more", getattr(self, name))
        for name in ("seed", "sample_every_steps", "evaluate_every_steps"):
            check(getattr(self, name) >= 0, f"training.{name}", "0 or more", getattr(self, name))
        precisions = ", ".join(MIXED_PRECISION)
        is_known = self.mixed_precision in MIXED_PRECISION
        check(is_known, "training.mixed_precision", f"one of {precisions}", self.mixed_precision)


@dataclass(kw_only=True)
class PretrainingRecipe:
    """Everything that masked image modelling depends on."""

    tokenizer: str
    """Folder or hub name of the trained visual tokenizer; its weights stay as they are."""

    output_dir: str
    """Folder of the run: log.jsonl, samples/, plots/, checkpoint-N/, final/."""

    image_size: int = 224
    """Side of the picture that the transformer sees, in pixels; a multiple of model.patch_size."""

    tokenizer_image_size: int | None = None
    """Side of the same picture for the tokenizer, in pixels; null: the size that the tokenizer was made for."""

    model: BeitSection = field(default_factory=BeitSection)
    """The transformer."""

    patch_aggregation: PatchAggregationSection | None = None
    """BEiT v2's second head; null for none."""

    masking: MaskingSection = field(default_factory=MaskingSection)
    """Blockwise masking."""

    data: DataSection = field(default_factory=DataSection)
    """Pictures; no label is read in training."""

    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    """AdamW."""

    training: PretrainingSection = field(default_factory=PretrainingSection)
    """The run."""

    probe: ProbeSection = field(default_factory=ProbeSection)
    """What is measured of the features at the end."""

    smoke: dict[str, Any] = field(default_factory=dict)
    """Dotted overrides for a run of a few steps on a small machine: `--smoke true` applies them."""

    def __post_init__(self) -> None:
        patch = self.model.patch_size
        fits = self.image_size >= patch and self.image_size % patch == 0
        check(fits, "image_size", f"a multiple of {patch} (model.patch_size)", self.image_size)
        size = self.tokenizer_image_size
        check(size is None or size >= 1, "tokenizer_image_size", "1 or more, or null", size)
        check(
            self.data.source.clip_frames == 0,
            "data.source",
            "a source of pictures, not of clips",
            self.data.source.type,
        )
        last = self.model.layers
        aggregation = self.patch_aggregation
        if aggregation is not None:
            is_before = aggregation.layer < last
            check(is_before, "patch_aggregation.layer", f"below {last} (model.layers)", aggregation.layer)
        layers = self.probe.layers
        inside = layers is None or all(1 <= layer <= last for layer in layers)
        check(inside, "probe.layers", f"in 1 … {last} (model.layers)", layers)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Patches of a column and of a row."""
        side = self.image_size // self.model.patch_size
        return side, side

    def per_device_batch_size(self, processes: int) -> int:
        """Return the pictures of one forward pass on one process.

        Raises:
            ConfigError: `data.batch_size` can't be divided so.
        """
        parts = processes * self.training.gradient_accumulation_steps
        if self.data.batch_size % parts:
            raise ConfigError(
                "data.batch_size must be a multiple of processes × training.gradient_accumulation_steps = "
                f"{processes} × {parts // processes} = {parts}, got {self.data.batch_size}"
            )
        return self.data.batch_size // parts
