"""A discriminator together with what it minimises, and the terms that keep it from winning too soon."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from visual_tokenizer.adversarial_losses.base import AdversarialLoss
from visual_tokenizer.adversarial_recipe import AdversarialSection
from visual_tokenizer.codebooks.distributed import average_over_ranks
from visual_tokenizer.discriminators.base import Discriminator


class LeCam(nn.Module):
    """Pulls the logits of real pictures towards the running mean of those of reconstructions, and the other way round.

    E max(0, D(x) − ᾱ_fake)² + E max(0, ᾱ_real − D(x̂))², with the means beginning at 0. Paper: Regularizing Generative
    Adversarial Networks under Limited Data (Tseng et al., 2021), arXiv:2104.03310, eq. 4, with the rectifier of the
    published code and of MaskGIT and Open-MAGVIT2.

    Args:
        judges: how many logits' means are kept.
        decay: weight of the past; in [0, 1).
    """

    real: Tensor
    fake: Tensor

    def __init__(self, judges: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(judges))
        self.register_buffer("fake", torch.zeros(judges))

    def forward(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
        """Return the regulariser, the mean over judges, a scalar."""
        terms = [
            F.relu(real[judge] - self.fake[judge]).square().mean()
            + F.relu(self.real[judge] - fake[judge]).square().mean()
            for judge in range(len(real))
        ]
        return torch.stack(terms).mean()

    @torch.no_grad()
    def update(self, means: Tensor) -> None:
        """Take in this rank's mean logits (2, judges), of real pictures and of reconstructions; all ranks call it."""
        real, fake = average_over_ranks(means)
        self.real.lerp_(real, 1 - self.decay)
        self.fake.lerp_(fake, 1 - self.decay)


class DiscriminatorOutput(NamedTuple):
    """What one pass of the discriminator gives."""

    loss: Tensor
    """Scalar with gradient."""
    means: Tensor
    """(2, judges) mean logits of real pictures and of reconstructions, without gradient."""
    values: dict[str, Tensor]
    """Scalars to log."""


class DiscriminatorObjective(nn.Module):
    """One module, so that a data-parallel wrapper sees one forward pass for real pictures and reconstructions."""

    def __init__(self, discriminator: Discriminator, loss: AdversarialLoss, section: AdversarialSection) -> None:
        super().__init__()
        self.discriminator = discriminator
        self.loss = loss
        self.section = section
        self.lecam = LeCam(discriminator.judges, section.lecam_decay)

    def forward(self, pixels: Tensor, reconstruction: Tensor, penalise: bool) -> DiscriminatorOutput:
        """Judge real pictures and detached reconstructions, (B, 3, [T,] H, W) each; `penalise` adds R1."""
        real = [logits.float() for logits in self.discriminator(pixels)]
        fake = [logits.float() for logits in self.discriminator(reconstruction)]
        terms = [self.loss.discriminator(one, other) for one, other in zip(real, fake, strict=True)]
        loss = torch.stack(terms).mean()
        means = torch.stack([torch.stack([logits.detach().mean() for logits in side]) for side in (real, fake)])
        boundary = self.loss.boundary
        right = [(logits.detach() > boundary).float().mean() for logits in real]
        right += [(logits.detach() <= boundary).float().mean() for logits in fake]
        values = {
            "loss/discriminator": loss.detach(),
            "discriminator/real_logits": means[0].mean(),
            "discriminator/fake_logits": means[1].mean(),
            "discriminator/accuracy": torch.stack(right).mean(),
        }
        if self.section.lecam_weight > 0:
            regulariser = self.lecam(real, fake)
            values["discriminator/lecam"] = regulariser.detach()
            loss = loss + self.section.lecam_weight * regulariser
        if penalise:
            penalty = gradient_penalty(self.discriminator, pixels)
            values["discriminator/r1"] = penalty.detach()
            loss = loss + self.section.r1_weight / 2 * self.section.r1_every_steps * penalty
        return DiscriminatorOutput(loss, means, values)


def gradient_penalty(discriminator: Discriminator, pixels: Tensor) -> Tensor:
    """Return R1, E‖∇D(x)‖² over pictures, in float32; D is the mean of a picture's logits, averaged over judges.

    Attention falls back to the kernel that can be differentiated twice.
    """
    pixels = pixels.detach().float().requires_grad_()
    with torch.autocast(pixels.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
        means = [logits.float().reshape(pixels.shape[0], -1).mean(1) for logits in discriminator(pixels)]
        (gradient,) = torch.autograd.grad(torch.stack(means).mean(0).sum(), pixels, create_graph=True)
    return gradient.flatten(1).square().sum(1).mean()
