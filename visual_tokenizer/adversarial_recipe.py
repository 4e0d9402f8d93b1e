"""What a recipe says about adversarial training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Gt, Interval, Len

from visual_tokenizer.adversarial_losses.base import AdversarialLossConfig
from visual_tokenizer.discriminators.base import DiscriminatorConfig
from visual_tokenizer.fields.ranges import Section


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
