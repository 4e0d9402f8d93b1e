"""A learned codebook whose codes can't leave a ball around the origin. Paper: none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from visual_tokenizer.codebooks.search import code_counts, nearest_codes
from visual_tokenizer.codebooks.updates.base import UpdateConfig
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig, batch_metrics
from visual_tokenizer.registry import ConfigError, PartConfig


def _part(kind: type[PartConfig], name: str) -> Any:
    return kind.family.config({"type": name})


@dataclass(kw_only=True)
class AnchoredConfig(QuantizerConfig):
    """Fields of anchored."""

    codebook_size: int = 64
    """Number of codes; 2 or more."""

    code_dim: int = 4
    """Channels of a code; 1 or more."""

    radius: float = 2.0
    """Longest code; above 0."""

    update: UpdateConfig = field(default_factory=lambda: _part(UpdateConfig, "ema"))
    """How the codes learn."""

    def __post_init__(self) -> None:
        if self.codebook_size < 2:
            raise ValueError(f"codebook_size must be 2 or more, got {self.codebook_size}")
        if self.code_dim < 1:
            raise ValueError(f"code_dim must be 1 or more, got {self.code_dim}")
        if not self.radius > 0:
            raise ValueError(f"radius must be above 0, got {self.radius}")


class Anchored(Quantizer):
    """Nearest code of a bounded table, with straight-through gradients."""

    Config = AnchoredConfig

    def __init__(self, config: AnchoredConfig) -> None:
        super().__init__(config)
        self.codebook_size, self.code_dim = config.codebook_size, config.code_dim
        self.update = UpdateConfig.family.build(
            config.update, codebook_size=config.codebook_size, code_dim=config.code_dim
        )
        if self.update.trains_by_gradient:
            raise ConfigError(f"update must be one without gradients, got '{config.update.type}'")
        self.codebook = nn.Parameter(torch.randn(config.codebook_size, config.code_dim) / 2, requires_grad=False)
        self.update.reset(self.codebook.data)

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        flat = latents.detach().reshape(-1, self.code_dim)
        found = nearest_codes(flat, self.codebook)
        codes = self.codebook[found].view(latents.shape)
        output = QuantizerOutput(
            codes=codes + (latents - latents.detach()),
            indices=found.view(latents.shape[:-1]),
            losses={"commitment": 0.25 * (latents - codes).square().mean()},
            metrics=batch_metrics(code_counts(found, self.codebook_size)),
        )
        if self.training:
            self.update.step(self.codebook.data, flat, found)
            lengths = self.codebook.data.norm(dim=1, keepdim=True)
            self.codebook.data.mul_((self.config.radius / lengths.clamp_min(1e-6)).clamp_max(1))
        return output

    def lookup(self, indices: Tensor) -> Tensor:
        return self.codebook[indices]
