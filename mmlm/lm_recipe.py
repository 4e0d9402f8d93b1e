"""The recipe of a multimodal language model: every field, its unit and its legal range."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmlm.mixture_recipe import MixtureMember, member_names
from mmlm.stage_recipe import FreezeStage, ResolutionStage, check_freeze_stages, check_resolution_stages
from visual_tokenizer.data.sources.base import SPLITS, SourceConfig
from visual_tokenizer.registry import ConfigError

MIXED_PRECISIONS = ("no", "bf16", "fp16")
PARAMETER_DTYPES = ("float32", "bfloat16", "float16")
RESUME_AUTO, RESUME_NEVER = "auto", "never"
QUANTIZATIONS = ("nf4", "int8")


def check(holds: bool, field_name: str, rule: str, value: Any) -> None:
    """Raise `ConfigError` naming field, rule and value unless the rule holds."""
    if not holds:
        raise ConfigError(f"{field_name} must be {rule}, got {value!r}")


@dataclass(kw_only=True)
class DataSection:
    """Which pairs of caption and picture, or documents, and how they become sequences."""

    source: SourceConfig | None = None
    """Pictures with captions; give this or mixture. The fields from image_to_text_fraction to max_caption_tokens are
    for these."""
    mixture: list[MixtureMember] = field(default_factory=list)
    """Sets of documents, with weights; give this or source."""
    shards_dir: str
    """Folder of the tokenized pictures, a subfolder a split, below one for each member of a mixture; made by the first
    run and reused by later ones."""
    train_split: str = "train"
    """Split of the source for training: train, heldout or all."""
    heldout_split: str = "heldout"
    """Split for evaluation; read only if training.evaluate_every_steps is not 0."""
    image_to_text_fraction: float = 0.2
    """Share of the sequences that are picture → caption; the others are caption → picture. In [0, 1]."""
    caption_dropout: float = 0.1
    """Share of the caption → picture sequences without caption, which classifier-free guidance needs. In [0,
    1]."""
    loss_on_prompt: bool = True
    """Whether what comes first is trained too: the caption of caption → picture, the picture of picture →
    caption."""
    max_caption_tokens: int = 256
    """Longer captions are cut; 1 or more."""
    resolutions: list[ResolutionStage] = field(default_factory=list)
    """Picture sizes in turn; the shards of each are in a folder of shards_dir (32px/train). Empty: the tokenizer's size
    throughout."""
    packing: bool = False
    """Whether sequences are put together in rows of max_length tokens, so that next to nothing is padding. Each still
    sees itself alone. A batch then is training.batch_size rows."""
    packing_buffer: int = 4096
    """Sequences among which those that fit together are chosen; 1 or more."""
    max_length: int | None = None
    """Tokens of a packed row, and the most that a sequence may have; null: the model's positions."""
    pad_to_multiple_of: int = 1
    """Batches are padded to the longest sequence, rounded up to a multiple of this; 1 or more."""
    tokenize_batch_size: int = 64
    """Pictures at a time through the visual tokenizer, on each process; 1 or more."""
    loader_workers: int = 0
    """Processes that decode pictures, and later build batches, for each rank; 0: the rank itself."""

    def __post_init__(self) -> None:
        given = f"source={self.source is not None}, mixture of {len(self.mixture)}"
        check((self.source is None) == bool(self.mixture), "data", "given either source or mixture", given)
        member_names(self.mixture)
        for name in ("train_split", "heldout_split"):
            check(
                getattr(self, name) in SPLITS,
                f"data.{name}",
                f"one of {', '.join(SPLITS)}",
                getattr(self, name),
            )
        for name in ("image_to_text_fraction", "caption_dropout"):
            check(0 <= getattr(self, name) <= 1, f"data.{name}", "in [0, 1]", getattr(self, name))
        check_resolution_stages(self.resolutions, packing=self.packing, mixture=bool(self.mixture))
        check(self.max_length is None or self.max_length >= 1, "data.max_length", "1 or more, or null", self.max_length)
        for name in ("packing_buffer", "max_caption_tokens", "pad_to_multiple_of", "tokenize_batch_size"):
            check(getattr(self, name) >= 1, f"data.{name}", "1 or more", getattr(self, name))
        check(self.loader_workers >= 0, "data.loader_workers", "0 or more", self.loader_workers)


@dataclass(kw_only=True)
class LossSection:
    """What each kind of token weighs. The loss is the weighted mean over the trained tokens of a batch."""

    text: float = 1.0
    """Weight of caption tokens; 0 or more."""
    image: float = 1.0
    """Weight of visual tokens; 0 or more."""
    structure: float = 1.0
    """Weight of the layout's own tokens (marks, size, ends of rows) and of EOS; 0 or more."""
    z_loss: float = 0.0
    """Factor of the squared log of the softmax's normalizer, which keeps logits from drifting; Chameleon's is 1e-5; 0
    or more."""

    def __post_init__(self) -> None:
        for name in ("text", "image", "structure", "z_loss"):
            check(getattr(self, name) >= 0, f"loss.{name}", "0 or more", getattr(self, name))
        check(any(self.weights().values()), "loss", "above 0 for one kind of token at least", self.weights())

    def weights(self) -> dict[str, float]:
        """Return the weight of each kind of token."""
        return {"text": self.text, "image": self.image, "structure": self.structure}


@dataclass(kw_only=True)
class OptimizerSection:
    """AdamW and its schedule."""

    learning_rate: float = 3e-4
    """Peak, after the warm-up; above 0."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Two numbers in [0, 1)."""
    epsilon: float = 1e-8
    """Added to the denominator; above 0."""
    weight_decay: float = 0.1
    """Decoupled; not applied to norms and biases; 0 or more."""
    warmup_steps: int = 100
    """Optimizer steps of linear warm-up; 0 or more."""
    schedule: str = "cosine"
    """A schedule of transformers: cosine, cosine_with_min_lr, constant_with_warmup, linear,
    warmup_stable_decay, …"""
    schedule_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the schedule, for example min_lr_rate of cosine_with_min_lr."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0: not at all."""

    def __post_init__(self) -> None:
        check(self.learning_rate > 0, "optimizer.learning_rate", "above 0", self.learning_rate)
        in_range = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        check(in_range, "optimizer.betas", "two numbers in [0, 1)", self.betas)
        check(self.epsilon > 0, "optimizer.epsilon", "above 0", self.epsilon)
        for name in ("weight_decay", "warmup_steps", "max_grad_norm"):
            check(getattr(self, name) >= 0, f"optimizer.{name}", "0 or more", getattr(self, name))
        from transformers import SchedulerType

        known = [kind.value for kind in SchedulerType]
        check(self.schedule in known, "optimizer.schedule", f"one of {', '.join(known)}", self.schedule)


@dataclass(kw_only=True)
class TrainingSection:
    """Length, precision, what is written when, and resuming."""

    max_steps: int | None = None
    """Optimizer steps; give this or epochs."""
    epochs: float | None = None
    """Passes over the training pictures; give this or max_steps."""
    batch_size: int = 64
    """Sequences, or packed rows, of one optimizer step over all processes; a multiple of processes ·
    gradient_accumulation_steps."""
    gradient_accumulation_steps: int = 1
    """Parts into which each process cuts its share of a batch; 1 or more."""
    mixed_precision: str = "no"
    """no, bf16 or fp16; overrides the launcher's."""
    parameter_dtype: str = "float32"
    """Of the weights in memory: float32, bfloat16 or float16. float32 unless the weights are frozen
    (lora)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    compile: bool = False
    """Compile the model with torch.compile."""
    peak_tflops: float | None = None
    """Peak of one device in 10^12 operations a second, for mfu in the log (H100, bf16, dense: 989); above 0; null: no
    mfu."""
    seed: int = 0
    """Of order, direction and caption dropout of the samples, of new LoRA weights and of dropout."""
    log_every_steps: int = 10
    """Steps between two lines of metrics.jsonl; 1 or more."""
    sample_every_steps: int = 0
    """Steps between two grids of pictures in samples/; 0: none."""
    evaluate_every_steps: int = 0
    """Steps between two evaluations of the held-out split; 0: none."""
    checkpoint_every_steps: int = 500
    """Steps between two checkpoints; 1 or more."""
    keep_checkpoints: int = 2
    """Complete checkpoints that are kept, the newest ones; 1 or more."""
    report_to: list[str] = field(default_factory=list)
    """Trackers of transformers: tensorboard, wandb, trackio, …; metrics.jsonl is always written."""
    resume: str = RESUME_AUTO
    """auto: from the newest complete checkpoint in output_dir; never: refuse if there is one; or a
    checkpoint."""
    freeze: list[FreezeStage] = field(default_factory=list)
    """Stages at the beginning in which only a part of the weights moves, without weight decay; then all do. Memory and
    time are those of training everything."""
    deepspeed: str | None = None
    """DeepSpeed configuration file, for example recipes/deepspeed/zero2.json; null: as the launcher says."""

    def __post_init__(self) -> None:
        lengths = f"max_steps={self.max_steps}, epochs={self.epochs}"
        check(
            (self.max_steps is None) != (self.epochs is None),
            "training",
            "given either max_steps or epochs",
            lengths,
        )
        check((self.max_steps or self.epochs or 0) > 0, "training", "given a length above 0", lengths)
        for name in (
            "batch_size",
            "gradient_accumulation_steps",
            "log_every_steps",
            "checkpoint_every_steps",
            "keep_checkpoints",
        ):
            check(getattr(self, name) >= 1, f"training.{name}", "1 or more", getattr(self, name))
        for name in ("sample_every_steps", "evaluate_every_steps"):
            check(getattr(self, name) >= 0, f"training.{name}", "0 or more", getattr(self, name))
        check_freeze_stages(self.freeze)
        positive = self.peak_tflops is None or self.peak_tflops > 0
        check(positive, "training.peak_tflops", "above 0, or null", self.peak_tflops)
        for name, known in (("mixed_precision", MIXED_PRECISIONS), ("parameter_dtype", PARAMETER_DTYPES)):
            check(
                getattr(self, name) in known,
                f"training.{name}",
                f"one of {', '.join(known)}",
                getattr(self, name),
            )


@dataclass(kw_only=True)
class SamplingSection:
    """The pictures drawn while training; all but prompts and seed is saved with the model as its default."""

    prompts: list[str] = field(default_factory=lambda: ["red apple", "cat face", "sun", "house"])
    """One picture each."""
    guidance_scale: float = 3.0
    """Classifier-free guidance; 1: none."""
    temperature: float = 1.0
    """Above 0."""
    top_k: int = 0
    """Only the k likeliest tokens are drawn from; 0: all."""
    top_p: float = 1.0
    """Only the likeliest tokens that together have this probability are drawn from; in (0, 1]."""
    seed: int = 0
    """The same draw every time, so that the grids show what training changed."""

    def __post_init__(self) -> None:
        check(len(self.prompts) > 0, "sampling.prompts", "one text or more", self.prompts)
        check(self.temperature > 0, "sampling.temperature", "above 0", self.temperature)
        check(self.top_k >= 0, "sampling.top_k", "0 or more", self.top_k)
        check(0 < self.top_p <= 1, "sampling.top_p", "in (0, 1]", self.top_p)

    def defaults(self) -> dict[str, Any]:
        """Return what is saved with the model."""
        return {name: getattr(self, name) for name in ("guidance_scale", "temperature", "top_k", "top_p")}


@dataclass(kw_only=True)
class LoraSection:
    """Low-rank adapters (Hu et al., 2021, arXiv 2106.09685) beside frozen weights.

    The rows of the visual and structural tokens, in the table and in an untied head, are trained in full.
    """

    rank: int = 0
    """Rank of the adapters; 0: none, all weights are trained."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank; above 0."""
    dropout: float = 0.0
    """Before the adapter; in [0, 1)."""
    target_modules: list[str] | None = None
    """Ends of the names of the linear layers; null: all but the head."""
    dora: bool = False
    """Learn the length of each output's weights beside their direction, which the adapter then changes alone: DoRA (Liu
    et al., arXiv 2402.09353)."""
    quantization: str | None = None
    """Of the frozen linear layers: nf4 (QLoRA, Dettmers et al., arXiv 2305.14314) or int8; null: none. Takes the
    package bitsandbytes and a CUDA device."""

    def __post_init__(self) -> None:
        check(self.rank >= 0, "lora.rank", "0 or more", self.rank)
        check(self.alpha > 0, "lora.alpha", "above 0", self.alpha)
        check(0 <= self.dropout < 1, "lora.dropout", "in [0, 1)", self.dropout)
        known = self.quantization is None or self.quantization in QUANTIZATIONS
        check(known, "lora.quantization", f"null or one of {', '.join(QUANTIZATIONS)}", self.quantization)
        for name in ("dora", "quantization"):
            wanted = getattr(self, name)
            check(self.rank > 0 or not wanted, f"lora.{name}", "left out where lora.rank is 0", wanted)


@dataclass(kw_only=True)
class LMRecipe:
    """Training of a merged language model on captions and pictures, or on documents."""

    model: str
    """Folder of the merged model: language model, text tokenizer and visual tokenizer."""
    output_dir: str
    """Folder of the run; the trained model goes to its subfolder final/."""
    data: DataSection
    """Pairs or documents, and sequences."""
    loss: LossSection = field(default_factory=LossSection)
    """What counts how much."""
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    """AdamW and schedule."""
    training: TrainingSection
    """Length, precision, logs, checkpoints."""
    sampling: SamplingSection = field(default_factory=SamplingSection)
    """Pictures drawn while training."""
    lora: LoraSection = field(default_factory=LoraSection)
    """Adapters beside frozen weights, if lora.rank is not 0."""
    smoke: dict[str, Any] = field(default_factory=dict)
    """Dotted overrides for a run of a few steps on a small machine: `--smoke true` applies them."""

    def __post_init__(self) -> None:
        if self.data.mixture:
            rule = "null where there is data.mixture, whose sets have no common end: give training.max_steps"
            check(self.training.epochs is None, "training.epochs", rule, self.training.epochs)
        if not self.lora.rank:
            check(
                self.training.parameter_dtype == "float32",
                "training.parameter_dtype",
                "float32 where all weights are trained: AdamW's small steps vanish in half precision",
                self.training.parameter_dtype,
            )
