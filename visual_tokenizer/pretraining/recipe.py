"""What a recipe of masked image modelling says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Interval, Len

from visual_tokenizer.data.batches import DataSection
from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.runs.section import RunSection
from visual_tokenizer.training.recipe import OptimizerSection


@dataclass(kw_only=True)
class BeitSection(Section):
    """The transformer, as transformers' BeitConfig has it; the defaults are ViT-B/16's."""

    patch_size: Annotated[int, Ge(1)] = 16
    """Side of a patch in pixels; divides image_size."""

    hidden_size: Annotated[int, Ge(1)] = 768
    """Channels; a multiple of heads."""

    layers: Annotated[int, Ge(1)] = 12
    """Transformer blocks."""

    heads: Annotated[int, Ge(1)] = 12
    """Attention heads."""

    intermediate_size: Annotated[int, Ge(1)] = 3072
    """Channels inside the feed-forward layers."""

    layer_scale: Annotated[float, Ge(0)] = 0.1
    """Where the scales of the residual branches begin (CaiT, arXiv:2103.17239); 0 for none."""

    drop_path: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Chance to leave out a residual branch of the last block, falling to 0 at the first."""

    relative_positions: bool = True
    """Learned biases of attention by relative position, shared by all blocks."""

    absolute_positions: bool = False
    """Learned embeddings of the positions, added to the patches."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.heads:
            raise UserError(f"hidden_size must be a multiple of {self.heads} (heads), got {self.hidden_size}")
        if not self.relative_positions and not self.absolute_positions:
            raise UserError(
                "relative_positions must be true where absolute_positions is false: masked patches would not know "
                "where they are"
            )


@dataclass(kw_only=True)
class PatchAggregationSection(Section):
    """BEiT v2's second prediction, from the class token and the patches of an earlier block."""

    layer: Annotated[int, Ge(1)] = 9
    """Block whose patches are taken, counted from 1; before the last."""

    head_layers: Annotated[int, Ge(1)] = 2
    """Transformer blocks of the second head, which is dropped after the training."""


@dataclass(kw_only=True)
class MaskingSection(Section):
    """Which patches are hidden."""

    masked_patches: Annotated[int, Ge(1)] | None = None
    """Patches that are hidden; null: 75 of 196, scaled to the grid."""

    min_block_patches: Annotated[int, Ge(1)] | None = None
    """Smallest area drawn for a block, in patches; null: 16 of 196, scaled to the grid."""

    min_aspect: Annotated[float, Interval(gt=0, le=1)] = 0.3
    """Smallest height of a block through its width, and of its width through its height."""


@dataclass(kw_only=True)
class ProbeSection(Section):
    """How frozen features are judged by labels."""

    label_column: str | None = "group"
    """Column of the source that holds the labels; null: features are not judged."""

    layers: Annotated[list[Annotated[int, Ge(1)]], Len(1)] | None = None
    """Blocks whose patches are averaged, counted from 1; null: the one after three quarters, and the last."""

    neighbours: Annotated[int, Ge(1)] = 20
    """Training pictures that vote on the label of a held-out one."""

    max_training_pictures: Annotated[int, Ge(2)] = 10_000
    """At most so many labelled training pictures."""


@dataclass(kw_only=True)
class PretrainingSection(RunSection):
    """How long, how precisely, and what is written when."""

    max_steps: Annotated[int, Ge(1)] = 10_000
    """Optimizer steps."""

    sample_pictures: Annotated[int, Ge(1)] = 16
    """Held-out pictures on a grid."""

    max_evaluation_pictures: Annotated[int, Ge(1)] = 1000
    """At most so many held-out pictures are measured."""

    deepspeed: str | None = None
    """DeepSpeed configuration file, for example recipes/deepspeed/zero2.json; null: as the launcher says."""


@dataclass(kw_only=True)
class PretrainingRecipe(Section):
    """Everything that masked image modelling depends on."""

    renamed: ClassVar[Mapping[str, str | None]] = {"data.batch_size": "training.batch_size"}

    tokenizer: str
    """Folder or hub name of the trained visual tokenizer; its weights stay as they are."""

    output_dir: str
    """Folder of the run: log.jsonl, samples/, plots/, checkpoint-N/, final/."""

    image_size: Annotated[int, Ge(1)] = 224
    """Side of the picture that the transformer sees, in pixels; a multiple of model.patch_size."""

    tokenizer_image_size: Annotated[int, Ge(1)] | None = None
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
        super().__post_init__()
        patch = self.model.patch_size
        if self.image_size % patch:
            raise UserError(f"image_size must be a multiple of {patch} (model.patch_size), got {self.image_size}")
        if self.data.source.clip_frames:
            raise UserError(f"data.source must be a source of pictures, not of clips, got {self.data.source.type}")
        last = self.model.layers
        if self.patch_aggregation is not None and self.patch_aggregation.layer >= last:
            raise UserError(
                f"patch_aggregation.layer must be below {last} (model.layers), got {self.patch_aggregation.layer}"
            )
        if any(layer > last for layer in self.probe.layers or []):
            raise UserError(f"probe.layers must be in 1 … {last} (model.layers), got {self.probe.layers}")

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Patches of a column and of a row."""
        side = self.image_size // self.model.patch_size
        return side, side
