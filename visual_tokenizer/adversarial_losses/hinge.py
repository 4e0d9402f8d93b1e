"""The hinge loss.

Paper: Geometric GAN (Lim & Ye, 2017), arXiv:1705.02894, eq. 17 and 18; halved for the discriminator as in Taming
Transformers (Esser et al., 2021), arXiv:2012.09841, and its published code.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.adversarial_losses.base import AdversarialLoss, AdversarialLossConfig


@dataclass(kw_only=True)
class HingeConfig(AdversarialLossConfig):
    """The hinge loss has no fields."""


class Hinge(AdversarialLoss):
    """G: −E D(x̂). D: ½ (E max(0, 1 − D(x)) + E max(0, 1 + D(x̂)))."""

    Config = HingeConfig

    def generator(self, fake: Tensor) -> Tensor:
        return -fake.mean()

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
