"""Negative log-likelihood of the pixels under logit-Laplace distributions.

Paper: Zero-Shot Text-to-Image Generation (Ramesh et al., 2021), arXiv:2102.12092, appendix A.3. A decoder that gives
means and log-scales (six channels, as the dVAE's) is scored as it is. For one that gives pixels only, as ViT-VQGAN's
(Yu et al., 2022), arXiv:2110.04627, section 3.3, where the loss has weight 0.1, the scale of each colour is a parameter
of the loss and the mean is the logit of the reconstruction, continued by its tangents where that leaves (0, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.logit_laplace import EPSILON, logit_laplace_nll, to_support
from visual_tokenizer.losses.base import Loss, LossConfig
from visual_tokenizer.outputs import TokenizerOutput


@dataclass(kw_only=True)
class LogitLaplaceConfig(LossConfig):
    """Fields of the logit-Laplace likelihood."""


class LogitLaplace(Loss):
    """−log p(x), averaged over every picture, channel and pixel."""

    Config = LogitLaplaceConfig

    def __init__(self, config: LogitLaplaceConfig) -> None:
        super().__init__(config)
        self.log_scale = nn.Parameter(torch.zeros(3))

    def forward(self, output: TokenizerOutput, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean of −log p in nats, a float32 scalar; it may be negative, being that of a density.

        Raises:
            ValueError: the decoder gives neither pixels (3 channels) nor means and log-scales (6).
        """
        raw = output.raw.float()
        if raw.shape[1] not in (3, 6):
            raise UserError(f"logit_laplace needs a decoder of 3 or 6 channels, got {raw.shape[1]}")
        colours = self.log_scale.float().view(3, *[1] * (raw.ndim - 2))
        if raw.shape[1] == 6:
            # Its zero share in the scales is a gradient for the parameter: data-parallel training wants one for each.
            mean, log_scale = raw[:, :3], raw[:, 3:] + 0 * colours
        else:
            mean, log_scale = _continued_logit(to_support(raw)), colours
        return logit_laplace_nll(to_support(batch["pixels"].float()), mean, log_scale).mean()


def _continued_logit(values: Tensor) -> Tensor:
    """Return the logit between ε/2 and 1 − ε/2, beyond them its tangents, so that a gradient is everywhere."""
    edge = EPSILON / 2
    inside = values.clamp(edge, 1 - edge)
    return inside.logit() + (values - inside) / (edge * (1 - edge))
