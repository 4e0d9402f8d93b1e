"""What a recipe of the visual tokenizer's training says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval, Len

from visual_tokenizer.adversarial_losses.base import AdversarialLossConfig
from visual_tokenizer.data.batches import DataSection
from visual_tokenizer.decoders.base import DecoderConfig
from visual_tokenizer.discriminators.base import DiscriminatorConfig
from visual_tokenizer.encoders.base import EncoderConfig
from visual_tokenizer.errors import UserError
from visual_tokenizer.fields.ranges import Section
from visual_tokenizer.losses.base import LossConfig
from visual_tokenizer.quantizers.base import QuantizerConfig
from visual_tokenizer.runs.section import RunSection
from visual_tokenizer.teacher import TeacherSection


@dataclass(kw_only=True)
class AdversarialSection(Section):
    """A discriminator, and how and when the tokenizer is trained against it.

    The discriminator's learning rate has the shape of the tokenizer's, its gradients are clipped to
    `optimizer.max_grad_norm`, and there is no weight decay.
    """

    discriminator: DiscriminatorConfig = field(
        default_factory=lambda: DiscriminatorConfig.family.config({"type": "patchgan"})
    )
    """Judge of pictures."""

    loss: AdversarialLossConfig = field(default_factory=lambda: AdversarialLossConfig.family.config({"type": "hinge"}))
    """What both sides minimise."""

    weight: Annotated[float, Ge(0)] = 0.8
    """Factor on the generator's loss. VQGAN's is 0.8 with `adaptive`, others' 0.1 to 0.5 without."""

    adaptive: bool = True
    """Multiply the weight by ‖∇ reconstruction losses‖ / (‖∇ generator's loss‖ + 1e-4), gradients with respect to the
    decoder's last layer, over all ranks, for each accumulated pass; at most 10⁴ (arXiv:2012.09841, eq. 7)."""

    start_step: Annotated[int, Ge(0)] = 0
    """Step from which the tokenizer is trained against the discriminator."""

    warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps from `start_step` on in which the generator's weight grows linearly to its full size."""

    discriminator_warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps before `start_step` in which the discriminator learns alone, so that it does not start cold."""

    learning_rate: Annotated[float, Gt(0)] | None = None
    """Peak learning rate of the discriminator; null: the tokenizer's."""

    betas: Annotated[list[Annotated[float, Interval(ge=0, lt=1)]], Len(2, 2)] | None = None
    """Decays of AdamW's two moments; null: the tokenizer's. VQGAN's are [0.5, 0.9]."""

    lecam_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of LeCam regularisation (arXiv:2104.03310), which holds the discriminator back where there are few
    pictures."""

    lecam_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.999
    """Weight of the past in the running means of the logits that LeCam compares with."""

    r1_weight: Annotated[float, Ge(0)] = 0.0
    """Weight γ of the gradient penalty γ/2 · E‖∇D(x)‖² on real pictures (arXiv:1801.04406, eq. 9)."""

    r1_every_steps: Annotated[int, Ge(1)] = 16
    """The penalty is taken, so many times as strong, each so many steps (arXiv:1912.04958, section 2.1)."""

    @property
    def discriminator_start(self) -> int:
        """Step from which the discriminator learns."""
        return max(0, self.start_step - self.discriminator_warmup_steps)

    def share(self, step: int) -> float:
        """Return how much of the generator's weight is in force at `step`: 0 before the start, then up to 1."""
        if step < self.start_step:
            return 0.0
        return min(1.0, (step - self.start_step + 1) / max(1, self.warmup_steps))


PARTS = ("encoder", "to_codes", "quantizer", "from_codes", "decoder")


@dataclass(kw_only=True)
class OptimizerSection(Section):
    """AdamW (arXiv:1711.05101) with a warm-up."""

    learning_rate: Annotated[float, Gt(0)] = 1e-4
    """Peak learning rate."""

    betas: Annotated[list[Annotated[float, Interval(ge=0, lt=1)]], Len(2, 2)] = field(
        default_factory=lambda: [0.9, 0.95]
    )
    """Decays of the two moments."""

    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Decay of the weight matrices and kernels; not of norms, biases, codebooks and positions."""

    warmup_steps: Annotated[int, Ge(0)] = 0
    """Steps of linear warm-up."""

    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: cosine (to `min_learning_rate_ratio` at the last step) or constant."""

    min_learning_rate_ratio: Annotated[float, Interval(ge=0, le=1)] = 0.1
    """Where the cosine ends, as a share of the peak."""

    max_grad_norm: Annotated[float, Gt(0)] = 1.0
    """Gradients are scaled down to this norm."""


@dataclass(kw_only=True)
class TrainingSection(RunSection):
    """How long, how precisely, and what is written when."""

    max_steps: Annotated[int, Ge(1)] = 10_000
    """Optimizer steps."""

    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """Weight of the past in the averaged weights; 0 is off. The average is what `final/` holds."""

    log_every_steps: Annotated[int, Ge(1)] = 20
    """Steps between log lines, whose values are means over these steps. Also how often several processes agree on a
    wish to stop."""

    sample_every_steps: Annotated[int, Ge(0)] = 500
    """Steps between grids of reconstructed held-out pictures and plots; 0 for none but the last."""

    sample_pictures: Annotated[int, Ge(1)] = 16
    """Held-out pictures on a grid."""

    evaluate_every_steps: Annotated[int, Ge(0)] = 1000
    """Steps between evaluations on the held-out pictures; 0 for none but the last."""

    max_evaluation_pictures: Annotated[int, Ge(1)] = 1000
    """At most so many held-out pictures are evaluated."""

    diagnose_every_steps: Annotated[int, Ge(0)] = 1000
    """Steps between two looks at the codebook's health: codes alive, their age, equality over processes; 0 for none
    but the last."""

    checkpoint_every_steps: Annotated[int, Ge(0)] = 1000
    """Steps between checkpoints; 0 for none but the last."""

    channels_last: bool = False
    """Lay out pictures, clips and kernels channels-last, which convolutions on tensor cores prefer."""


@dataclass(kw_only=True)
class TokenizerRecipe(Section):
    """Everything that a training run of a visual tokenizer depends on."""

    renamed: ClassVar[Mapping[str, str | None]] = {"data.batch_size": "training.batch_size"}

    output_dir: str
    """Folder of the run: log.jsonl, samples/, plots/, checkpoints/, final/."""

    image_size: Annotated[int, Ge(1)] = 256
    """Side of a picture in pixels."""

    num_frames: Annotated[int, Ge(0)] = 0
    """Frames of a clip; 0 to train on pictures."""

    encoder: EncoderConfig = field(default_factory=lambda: EncoderConfig.family.config({"type": "cnn"}))
    """Pixels to latents."""

    quantizer: QuantizerConfig = field(default_factory=lambda: QuantizerConfig.family.config({"type": "fsq"}))
    """Latents to codes and indices."""

    decoder: DecoderConfig = field(default_factory=lambda: DecoderConfig.family.config({"type": "cnn"}))
    """Codes to pixels."""

    initialize_from: str | None = None
    """Folder or hub name of a trained tokenizer of the same architecture whose weights training begins with."""

    freeze: list[str] = field(default_factory=list)
    """Parts that stay as they are: encoder, to_codes, quantizer, from_codes, decoder. To tune a decoder to given tokens
    (TiTok's second stage, arXiv:2406.07550): [encoder, to_codes, quantizer]."""

    losses: Annotated[list[LossConfig], Len(1)] = field(
        default_factory=lambda: [LossConfig.family.config({"type": "l2"})]
    )
    """Terms of the objective, each different; the quantizer adds its own."""

    teacher: TeacherSection | None = None
    """Frozen network that losses learn from which name none themselves; null: each has its own."""

    adversarial: AdversarialSection | None = None
    """Training against a discriminator; null for none."""

    data: DataSection = field(default_factory=DataSection)
    """Pictures."""

    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    """AdamW."""

    training: TrainingSection = field(default_factory=TrainingSection)
    """The run."""

    smoke: dict[str, Any] = field(default_factory=dict)
    """Dotted overrides for a run of two steps on a small machine: `--smoke true` applies them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        frames = self.data.source.clip_frames
        if frames != self.num_frames:
            has = f"clips of {frames} frames" if frames else "pictures"
            raise UserError(
                f"num_frames must be what data.source gives ({frames}: {self.data.source.type} gives {has}), "
                f"got {self.num_frames}"
            )
        names = [loss.type for loss in self.losses]
        if len(set(names)) != len(names):
            raise UserError(f"losses must be different from one another, got {names}")
        self._check_teacher()
        unknown = [name for name in self.freeze if name not in PARTS]
        if unknown or len(set(self.freeze)) != len(self.freeze) or len(self.freeze) == len(PARTS):
            raise UserError(f"freeze must name some of {', '.join(PARTS)}, each once and not all, got {self.freeze}")
        if self.adversarial is not None and self.adversarial.adaptive and "decoder" in self.freeze:
            raise UserError(
                "adversarial.adaptive must be false where freeze names the decoder, whose last layer it needs"
            )

    def _check_teacher(self) -> None:
        if self.teacher is None:
            return
        if not any(loss.wants_teacher for loss in self.losses):
            raise UserError(
                "teacher must be null where no loss learns from it: each names a network of its own, or needs none"
            )
        if self.teacher.cache_dir is not None and (self.data.transform.crop != "center" or self.num_frames):
            raise UserError(
                "teacher.cache_dir must be null unless data.transform.crop is center and num_frames is 0: a picture's "
                f"pixels must be the same each epoch, got crop {self.data.transform.crop} and {self.num_frames} frames"
            )
