"""The recipe of a multimodal language model: every field, its unit and its legal range."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval, Len

from mmlm.recipes.mixture import MixtureMember, member_names
from mmlm.recipes.sampling import Sampling
from mmlm.recipes.stage import FreezeStage, ResolutionStage, check_freeze_stages, check_resolution_stages
from visual_tokenizer.data.sources.base import SourceConfig, Split
from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.hf_training.schedules import ENDING
from visual_tokenizer.runs.section import RunSection


@dataclass(kw_only=True)
class LMDataSection(Section):
    """Which pairs of caption and picture, or documents, and how they become sequences."""

    source: SourceConfig | None = None
    """Pictures with captions; give this or mixture. The fields from image_to_text_fraction to max_caption_tokens are
    for these."""
    mixture: list[MixtureMember] = field(default_factory=list)
    """Sets of documents, with weights; give this or source."""
    shards_dir: str
    """Folder of the tokenized pictures, a subfolder a split, below one for each member of a mixture; made by the first
    run and reused by later ones."""
    train_split: Split = "train"
    """Split of the source for training."""
    heldout_split: Split = "heldout"
    """Split for evaluation; read only if training.evaluate_every_steps is not 0."""
    image_to_text_fraction: Annotated[float, Interval(ge=0, le=1)] = 0.2
    """Share of the sequences that are picture → caption; the others are caption → picture."""
    caption_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Share of the caption → picture sequences without caption, which classifier-free guidance needs."""
    loss_on_prompt: bool = True
    """Whether what comes first is trained too: the caption of caption → picture, the picture of picture →
    caption."""
    max_caption_tokens: Annotated[int, Ge(1)] = 256
    """Longer captions are cut."""
    resolutions: list[ResolutionStage] = field(default_factory=list)
    """Picture sizes in turn; the shards of each are in a folder of shards_dir (32px/train). Empty: the tokenizer's size
    throughout."""
    packing: bool = False
    """Whether sequences are put together in rows of max_length tokens, so that next to nothing is padding. Each still
    sees itself alone. A batch then is training.batch_size rows."""
    packing_buffer: Annotated[int, Ge(1)] = 4096
    """Sequences among which those that fit together are chosen."""
    max_length: Annotated[int, Ge(1)] | None = None
    """Tokens of a packed row, and the most that a sequence may have; null: the model's positions."""
    pad_to_multiple_of: Annotated[int, Ge(1)] = 1
    """Batches are padded to the longest sequence, rounded up to a multiple of this."""
    tokenize_batch_size: Annotated[int, Ge(1)] = 64
    """Pictures at a time through the visual tokenizer, on each process."""
    loader_workers: Annotated[int, Ge(0)] = 0
    """Processes that decode pictures, and later build batches, for each rank; 0: the rank itself."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.source is None) != bool(self.mixture):
            given = f"source={self.source is not None}, mixture of {len(self.mixture)}"
            raise UserError(f"either source or mixture must be given, got {given}")
        member_names(self.mixture)
        check_resolution_stages(self.resolutions, packing=self.packing, mixture=bool(self.mixture))


@dataclass(kw_only=True)
class LossSection(Section):
    """What each kind of token weighs. The loss is the weighted mean over the trained tokens of a batch."""

    text: Annotated[float, Ge(0)] = 1.0
    """Weight of caption tokens."""
    image: Annotated[float, Ge(0)] = 1.0
    """Weight of visual tokens."""
    structure: Annotated[float, Ge(0)] = 1.0
    """Weight of the layout's own tokens (marks, size, ends of rows) and of EOS."""
    z_loss: Annotated[float, Ge(0)] = 0.0
    """Factor of the squared log of the softmax's normalizer, which keeps logits from drifting; Chameleon's is 1e-5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(self.weights().values()):
            raise UserError(f"weights must be above 0 for one kind of token at least, got {self.weights()}")

    def weights(self) -> dict[str, float]:
        """Return the weight of each kind of token."""
        return {"text": self.text, "image": self.image, "structure": self.structure}


@dataclass(kw_only=True)
class LMOptimizerSection(Section):
    """AdamW and its schedule."""

    renamed: ClassVar[Mapping[str, str | None]] = {
        "schedule_options.min_lr_rate": "min_learning_rate_ratio",
        "schedule_options.min_lr_ratio": "min_learning_rate_ratio",
    }

    learning_rate: Annotated[float, Gt(0)] = 3e-4
    """Peak, after the warm-up."""
    betas: Annotated[list[Annotated[float, Interval(ge=0, lt=1)]], Len(2, 2)] = field(
        default_factory=lambda: [0.9, 0.95]
    )
    """Decays of the two moments."""
    epsilon: Annotated[float, Gt(0)] = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Ge(0)] = 0.1
    """Decoupled; not applied to norms and biases."""
    warmup_steps: Annotated[int, Ge(0)] = 100
    """Optimizer steps of linear warm-up."""
    schedule: str = "cosine"
    """A schedule of transformers: cosine, constant_with_warmup, linear, warmup_stable_decay, …"""
    schedule_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the schedule, for example num_decay_steps of warmup_stable_decay."""
    min_learning_rate_ratio: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Where the schedule ends, as a share of the peak; only for cosine and warmup_stable_decay."""
    max_grad_norm: Annotated[float, Ge(0)] = 1.0
    """Gradients are clipped to this norm; 0: not at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        from transformers import SchedulerType

        known = [kind.value for kind in SchedulerType]
        if self.schedule not in known:
            raise UserError(f"schedule must be one of {', '.join(known)}, got {self.schedule!r}")
        if self.min_learning_rate_ratio and self.schedule not in ENDING:
            raise UserError(
                f"min_learning_rate_ratio must be 0 unless schedule is one of {', '.join(ENDING)}, got "
                f"{self.min_learning_rate_ratio} with {self.schedule}"
            )


@dataclass(kw_only=True)
class LMTrainingSection(RunSection):
    """Length, precision, what is written when, and resuming."""

    max_steps: Annotated[int, Ge(1)] | None = None
    """Optimizer steps; give this or epochs."""
    epochs: Annotated[float, Gt(0)] | None = None
    """Passes over the training pictures; give this or max_steps."""
    batch_size: Annotated[int, Ge(1)] = 64
    """Sequences, or packed rows, of one optimizer step over all processes; a multiple of processes ·
    gradient_accumulation_steps."""
    parameter_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights in memory; float32 unless the weights are frozen (lora)."""
    peak_tflops: Annotated[float, Gt(0)] | None = None
    """Peak of one device in 10^12 operations a second, for mfu in the log (H100, bf16, dense: 989); null: no mfu."""
    log_every_steps: Annotated[int, Ge(1)] = 10
    """Steps between two lines of log.jsonl."""
    evaluate_every_steps: Annotated[int, Ge(0)] = 0
    """Steps between two evaluations of the held-out split; 0: none."""
    checkpoint_every_steps: Annotated[int, Ge(1)] = 500
    """Steps between two checkpoints."""
    freeze: list[FreezeStage] = field(default_factory=list)
    """Stages at the beginning in which only a part of the weights moves, without weight decay; then all do. Memory and
    time are those of training everything."""
    deepspeed: str | None = None
    """DeepSpeed configuration file, for example recipes/deepspeed/zero2.json; null: as the launcher says."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.max_steps is None) == (self.epochs is None):
            given = f"max_steps={self.max_steps}, epochs={self.epochs}"
            raise UserError(f"either max_steps or epochs must be given, got {given}")
        check_freeze_stages(self.freeze)


@dataclass(kw_only=True)
class SamplingSection(Sampling):
    """The pictures drawn while training; all but prompts and seed is saved with the model as its default."""

    prompts: Annotated[list[str], Len(1)] = field(default_factory=lambda: ["red apple", "cat face", "sun", "house"])
    """One picture each."""
    seed: Annotated[int, Ge(0)] = 0
    """The same draw every time, so that the grids show what training changed."""

    def defaults(self) -> dict[str, Any]:
        """Return what is saved with the model."""
        return {name.name: getattr(self, name.name) for name in fields(Sampling)}


@dataclass(kw_only=True)
class LoraSection(Section):
    """Low-rank adapters (Hu et al., 2021, arXiv 2106.09685) beside frozen weights.

    The rows of the visual and structural tokens, in the table and in an untied head, are trained in full.
    """

    rank: Annotated[int, Ge(0)] = 0
    """Rank of the adapters; 0: none, all weights are trained."""
    alpha: Annotated[float, Gt(0)] = 32.0
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Before the adapter."""
    target_modules: list[str] | None = None
    """Ends of the names of the linear layers; null: all but the head."""
    dora: bool = False
    """Learn the length of each output's weights beside their direction, which the adapter then changes alone: DoRA (Liu
    et al., arXiv 2402.09353)."""
    quantization: Literal["nf4", "int8"] | None = None
    """Of the frozen linear layers: nf4 (QLoRA, Dettmers et al., arXiv 2305.14314) or int8; null: none. Takes the
    package bitsandbytes and a CUDA device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("dora", "quantization"):
            if getattr(self, name) and not self.rank:
                raise UserError(f"{name} must be left out where rank is 0, got {getattr(self, name)!r}")


@dataclass(kw_only=True)
class LMRecipe(Section):
    """Training of a merged language model on captions and pictures, or on documents."""

    model: str
    """Folder of the merged model: language model, text tokenizer and visual tokenizer."""
    output_dir: str
    """Folder of the run; the trained model goes to its subfolder final/."""
    data: LMDataSection
    """Pairs or documents, and sequences."""
    loss: LossSection = field(default_factory=LossSection)
    """What counts how much."""
    optimizer: LMOptimizerSection = field(default_factory=LMOptimizerSection)
    """AdamW and schedule."""
    training: LMTrainingSection
    """Length, precision, logs, checkpoints."""
    sampling: SamplingSection = field(default_factory=SamplingSection)
    """Pictures drawn while training."""
    lora: LoraSection = field(default_factory=LoraSection)
    """Adapters beside frozen weights, if lora.rank is not 0."""
    smoke: dict[str, Any] = field(default_factory=dict)
    """Dotted overrides for a run of a few steps on a small machine: `--smoke true` applies them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.mixture and self.training.epochs is not None:
            raise UserError(
                "training.epochs must be null where there is data.mixture, whose sets have no common end: give "
                f"training.max_steps; got {self.training.epochs}"
            )
        if not self.lora.rank and self.training.parameter_dtype != "float32":
            raise UserError(
                "training.parameter_dtype must be float32 where all weights are trained: AdamW's small steps vanish "
                f"in half precision; got {self.training.parameter_dtype!r}"
            )
