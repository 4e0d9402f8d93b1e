"""The non-saturating logistic loss.

Paper: Generative Adversarial Networks (Goodfellow et al., 2014), arXiv:1406.2661, section 3; halved for the
discriminator as in Taming Transformers (Esser et al., 2021), arXiv:2012.09841, and its published code.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.adversarial_losses.base import AdversarialLoss, AdversarialLossConfig


@dataclass(kw_only=True)
class NonSaturatingConfig(AdversarialLossConfig):
    """The non-saturating loss has no fields."""


class NonSaturating(AdversarialLoss):
    """G: −E log σ(D(x̂)). D: −½ (E log σ(D(x)) + E log(1 − σ(D(x̂))))."""

    Config = NonSaturatingConfig

    def generator(self, fake: Tensor) -> Tensor:
        return F.softplus(-fake).mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2
