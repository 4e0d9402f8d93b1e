"""What a recipe says about adversarial training."""

from __future__ import annotations

from dataclasses import dataclass, field

from visual_tokenizer.adversarial_losses.base import AdversarialLossConfig
from visual_tokenizer.discriminators.base import DiscriminatorConfig
from visual_tokenizer.errors import UserError


@dataclass(kw_only=True)
class AdversarialSection:
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

    weight: float = 0.8
    """Factor on the generator's loss; 0 or more. VQGAN's is 0.8 with `adaptive`, others' 0.1 to 0.5 without."""

    adaptive: bool = True
    """Multiply the weight by ‖∇ reconstruction losses‖ / (‖∇ generator's loss‖ + 1e-4), gradients with respect to the
    decoder's last layer, over all ranks, for each accumulated pass; at most 10⁴ (arXiv:2012.09841, eq. 7)."""

    start_step: int = 0
    """Step from which the tokenizer is trained against the discriminator; 0 or more."""

    warmup_steps: int = 0
    """Steps from `start_step` on in which the generator's weight grows linearly to its full size; 0 or more."""

    discriminator_warmup_steps: int = 0
    """Steps before `start_step` in which the discriminator learns alone, so that it does not start cold; 0 or more."""

    learning_rate: float | None = None
    """Peak learning rate of the discriminator, above 0; null: the tokenizer's."""

    betas: list[float] | None = None
    """Decays of AdamW's two moments, each in [0, 1); null: the tokenizer's. VQGAN's are [0.5, 0.9]."""

    lecam_weight: float = 0.0
    """Weight of LeCam regularisation (arXiv:2104.03310), which holds the discriminator back where there are few
    pictures; 0 or more."""

    lecam_decay: float = 0.999
    """Weight of the past in the running means of the logits that LeCam compares with; in [0, 1)."""

    r1_weight: float = 0.0
    """Weight γ of the gradient penalty γ/2 · E‖∇D(x)‖² on real pictures (arXiv:1801.04406, eq. 9); 0 or more."""

    r1_every_steps: int = 16
    """The penalty is taken, so many times as strong, each so many steps (arXiv:1912.04958, section 2.1); 1 or more."""

    def __post_init__(self) -> None:
        for name in (
            "weight", "start_step", "warmup_steps", "discriminator_warmup_steps", "lecam_weight", "r1_weight",
        ):  # fmt: skip
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise UserError(f"learning_rate must be above 0, got {self.learning_rate}")
        if self.betas is not None and (len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas)):
            raise UserError(f"betas must be two numbers in [0, 1), got {self.betas}")
        if not 0 <= self.lecam_decay < 1:
            raise UserError(f"lecam_decay must be in [0, 1), got {self.lecam_decay}")
        if self.r1_every_steps < 1:
            raise UserError(f"r1_every_steps must be 1 or more, got {self.r1_every_steps}")

    @property
    def discriminator_start(self) -> int:
        """Step from which the discriminator learns."""
        return max(0, self.start_step - self.discriminator_warmup_steps)

    def share(self, step: int) -> float:
        """Return how much of the generator's weight is in force at `step`: 0 before the start, then up to 1."""
        if step < self.start_step:
            return 0.0
        return min(1.0, (step - self.start_step + 1) / max(1, self.warmup_steps))
