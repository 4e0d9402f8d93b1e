"""Adversarial training beside the tokenizer's own: the discriminator, its optimizer, and the generator's term.

In each accumulated pass the tokenizer goes forward once. The generator's term judges that reconstruction through the
bare discriminator, whose parameters take no gradient meanwhile; the discriminator then learns from the same
reconstruction, detached, through its own data-parallel wrapper. After the last pass both take their step. Over ranks
and, where no part looks at a whole batch, over passes this is the step of one process on the whole batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from visual_tokenizer.adversarial_losses.base import AdversarialLoss, AdversarialLossConfig
from visual_tokenizer.codebooks.distributed import average_over_ranks
from visual_tokenizer.discriminators.base import Discriminator
from visual_tokenizer.runs.checkpoints import flatten_optimizer, unflatten_optimizer
from visual_tokenizer.training.memory import lay_out_channels_last
from visual_tokenizer.training.objective import ObjectiveOutput
from visual_tokenizer.training.optimization import build_optimizer, learning_rate
from visual_tokenizer.training.recipe import AdversarialSection, OptimizerSection


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


MAX_ADAPTIVE_WEIGHT = 1e4


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, scale: Tensor | float = 1.0
) -> Tensor:
    """Return ‖∇ reconstruction‖ / (‖∇ adversarial‖ + 1e-4), a detached scalar in [0, 10⁴].

    The gradients, not their norms, are averaged over ranks: the weight is that of the whole batch on one process, and
    the same on every rank. Paper: Taming Transformers (Esser et al., 2021), arXiv:2012.09841, eq. 7.

    Args:
        reconstruction: the weighted reconstruction losses, a scalar of this rank; its graph is kept.
        adversarial: the generator's unweighted loss, a scalar of this rank; its graph is kept.
        last_layer: a parameter that both depend on.
        scale: factor on the losses on the way back, against underflow in float16. Where it overflows, the weight is 0
            (the optimizer will leave that step out).
    """
    gradients = torch.stack(
        [
            torch.autograd.grad(loss * scale, last_layer, retain_graph=True)[0].float() / scale
            for loss in (reconstruction, adversarial)
        ]
    )
    norms = torch.linalg.vector_norm(average_over_ranks(gradients).flatten(1), dim=1)
    weight = norms[0] / (norms[1] + 1e-4)
    return torch.nan_to_num(weight, nan=0.0, posinf=0.0).clamp(0, MAX_ADAPTIVE_WEIGHT)


class AdversarialTraining:
    """What a trainer needs of the other side.

    Args:
        discriminator: not yet on the device.
        accelerator: wraps the discriminator.
        last_layer: the decoder's, for the adaptive weight; None where it is not wanted.
        optimizer: the tokenizer's, from which the section's own settings depart.
        passes: forward and backward passes a step.
    """

    def __init__(
        self,
        section: AdversarialSection,
        discriminator: Discriminator,
        accelerator: Accelerator,
        *,
        last_layer: nn.Parameter | None,
        optimizer: OptimizerSection,
        max_steps: int,
        passes: int = 1,
        channels_last: bool = False,
    ) -> None:
        self.section = section
        self.accelerator = accelerator
        self.last_layer = last_layer
        self.passes = passes
        self.schedule = optimizer
        self.max_steps = max_steps
        self.loss = AdversarialLossConfig.family.build(section.loss)
        self.unwrapped = DiscriminatorObjective(discriminator, self.loss, section).to(accelerator.device).train()
        if channels_last:
            lay_out_channels_last(self.unwrapped)
        self.peak = section.learning_rate or optimizer.learning_rate
        betas = section.betas or optimizer.betas
        settings = dataclasses.replace(optimizer, learning_rate=self.peak, betas=betas, weight_decay=0.0)
        self.optimizer = build_optimizer(self.unwrapped, settings)
        # Its own scale: the losses of the two sides may differ by orders of magnitude.
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=accelerator.scaler is not None)
        self.objective = accelerator.prepare_model(self.unwrapped)
        self.means = torch.zeros(2, discriminator.judges, device=accelerator.device)

    def generator_term(self, output: ObjectiveOutput, step: int) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Return the weighted term of the tokenizer's loss in step `step` and what to log; 0 before the start."""
        share = self.section.share(step)
        if share == 0:
            return 0.0, {}
        discriminator = self.unwrapped.discriminator
        discriminator.requires_grad_(False)
        with self.accelerator.autocast():
            logits = discriminator(output.pixels)
        discriminator.requires_grad_(True)
        loss = torch.stack([self.loss.generator(judged.float()) for judged in logits]).mean()
        term = share * self.section.weight * loss
        values = {}
        if self.last_layer is not None:
            scaler = self.accelerator.scaler
            scale = 1.0 if scaler is None else scaler.scale(torch.ones((), device=loss.device))
            weight = adaptive_weight(output.reconstruction, loss, self.last_layer, scale)
            values["discriminator/adaptive_weight"] = weight
            term = weight * term
        return term, {**values, "loss/adversarial": term.detach()}

    def accumulate(self, pixels: Tensor, reconstruction: Tensor, step: int, is_last: bool) -> dict[str, Tensor]:
        """Go back through the discriminator for one pass of step `step`, the last or not; return what to log.

        Pixels are (B, 3, [T,] H, W) in [-1, 1], real ones and their reconstruction.
        """
        section = self.section
        if step < section.discriminator_start:
            return {}
        penalise = section.r1_weight > 0 and (step - section.discriminator_start) % section.r1_every_steps == 0
        with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.objective):
            output = self.objective(pixels, reconstruction.detach(), penalise)
            self.scaler.scale(output.loss / self.passes).backward()
        self.means += output.means / self.passes
        return output.values

    def update(self, step: int) -> dict[str, Tensor]:
        """Take the discriminator's step number `step`, after the last pass; return what to log."""
        if step < self.section.discriminator_start:
            return {}
        rate = learning_rate(self.schedule, step, self.max_steps) * self.peak / self.schedule.learning_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.unscale_(self.optimizer)
        parameters = self.unwrapped.discriminator.parameters()
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.schedule.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.unwrapped.lecam.update(self.means)
        self.means.zero_()
        return {"discriminator/gradient_norm": norm}

    def capture(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return everything that the next step depends on, as named groups of tensors and plain values."""
        moments, plain = flatten_optimizer(self.optimizer.state_dict())
        tensors = {"discriminator": self.unwrapped.state_dict(), "discriminator_optimizer": moments}
        return tensors, {"optimizer": plain, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: Mapping[str, dict[str, Tensor]], plain: Mapping[str, Any]) -> None:
        """Go back to what `capture` returned.

        Raises:
            RuntimeError, ValueError, KeyError: it belongs to another discriminator.
        """
        self.unwrapped.load_state_dict(tensors["discriminator"])
        moments = tensors.get("discriminator_optimizer", {})
        self.optimizer.load_state_dict(unflatten_optimizer(moments, plain["optimizer"]))
        if plain["scaler"]:
            self.scaler.load_state_dict(plain["scaler"])
