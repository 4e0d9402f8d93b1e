"""Rotation trick: the gradient is turned and scaled as the latent was turned and scaled onto its code.

Paper: Restructuring Vector Quantization with the Rotation Trick (Fifty et al., 2025), arXiv:2410.06424, section 4.2.
The rotation R that takes z/‖z‖ to e/‖e‖ is two Householder reflections, and λ = ‖e‖/‖z‖; both are constants of the
backward pass, so that dL/dz = λ Rᵀ dL/de keeps the angle between gradient and code, which straight-through does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from visual_tokenizer.codebooks.assignment import Assignment
from visual_tokenizer.codebooks.estimators.base import Estimator, EstimatorConfig

EPSILON = 1e-6
"""Below this norm a vector has no direction; that of z/‖z‖ + e/‖e‖ falls to 0 where they are opposite."""


@dataclass(kw_only=True)
class RotationConfig(EstimatorConfig):
    """The rotation trick has no fields."""


class Rotation(Estimator):
    """`λ(z − 2(w·z)w + 2(u·z)q)` with u = z/‖z‖, q = e/‖e‖, w = (u + q)/‖u + q‖; in value that is e."""

    Config = RotationConfig

    def forward(self, assignment: Assignment) -> Tensor:
        latents, codes = assignment.latents, assignment.codes.detach()
        length = latents.detach().norm(dim=-1, keepdim=True).clamp_min(EPSILON)
        code_length = codes.norm(dim=-1, keepdim=True)
        source = latents.detach() / length
        target = codes / code_length.clamp_min(EPSILON)
        middle = F.normalize(source + target, dim=-1, eps=EPSILON)
        turned = (
            latents
            - 2 * (latents * middle).sum(dim=-1, keepdim=True) * middle
            + 2 * (latents * source).sum(dim=-1, keepdim=True) * target
        ) * (code_length / length)
        return codes + (turned - turned.detach())
