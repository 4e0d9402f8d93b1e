"""The logit-Laplace distribution over (0, 1), and the map of pixels into its support.

Paper: Zero-Shot Text-to-Image Generation (Ramesh et al., 2021), arXiv:2102.12092, appendix A.3: pixels are bounded and
the Laplace distribution is not, so that the logit of a pixel is Laplace; pixels are kept off 0 and 1, where the density
has its poles.
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

EPSILON = 0.1
"""ε of the map x → (1 − 2ε) x + ε."""


def to_support(pixels: Tensor) -> Tensor:
    """Map pixels from [-1, 1] to [ε, 1 − ε]."""
    return (1 - 2 * EPSILON) * (pixels + 1) / 2 + EPSILON


def from_support(values: Tensor) -> Tensor:
    """Undo `to_support`; (0, 1) becomes (-1.25, 1.25)."""
    return 2 * (values - EPSILON) / (1 - 2 * EPSILON) - 1


def logit_laplace_nll(values: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Return −log f(x; μ, b) = log(2b x (1 − x)) + |logit(x) − μ| / b, element by element, in nats.

    Args:
        values: x in (0, 1).
        mean: μ, in logits.
        log_scale: log b.
    """
    # log x + log(1 − x) = −softplus(−l) − softplus(l) for l = logit(x).
    logits = values.logit()
    jacobian = -F.softplus(-logits) - F.softplus(logits)
    return math.log(2) + log_scale + jacobian + (logits - mean).abs() * (-log_scale).exp()
