"""Multi-head quantization: several learned views of each latent, each with a codebook of its own.

Paper: Factorized Visual Tokenization and Generation (Bai et al., 2024), arXiv:2411.16681, section 3.2, as the authors'
code (FQGAN) has it: each head is a linear map to few channels and a quantizer, the codes are concatenated and projected
back, and the squared cosine of two heads' codes, on the straight-through outputs and averaged over positions and pairs
of heads, keeps them apart; it reaches the maps, not the codebooks. Losses are summed over heads, as FQGAN's are.

Departs from it in that the heads read one set of latents (adapters that tell the branches apart belong to an encoder)
and in that the maps have no bias: `VisualTokenizer` has one before and one after.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.errors import UserError
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import (
    Composition,
    QuantizerConfig,
    join_indices,
    part_metrics,
    split_indices,
    sum_terms,
)


def _small_vq() -> Any:
    return QuantizerConfig.family.config({"type": "vq", "codebook_size": 1024, "code_dim": 8, "normalize": True})


@dataclass(kw_only=True)
class MultiHeadConfig(QuantizerConfig):
    """Fields of multi-head quantization."""

    base: QuantizerConfig = field(default_factory=_small_vq)
    """Quantizer of a head, whose code_dim is the head's width."""

    heads: Annotated[int, Ge(1)] = 2
    """Number of heads."""

    code_dim: Annotated[int, Ge(1)] = 32
    """Channels of latents and codes."""

    combine: Literal["concatenate", "sum"] = "concatenate"
    """Whether the heads' codes are concatenated and projected to code_dim, or added up; the base's code_dim is then
    code_dim."""

    disentanglement_weight: Annotated[float, Ge(0)] = 0.0
    """Factor on the mean squared cosine of two heads' codes. FQGAN's is 0.1."""

    bases: list[QuantizerConfig] = field(default_factory=list)
    """Quantizers of the heads, where they are not all alike: `heads` of them, of equal codebook_size. They take the
    place of `base`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.disentanglement_weight > 0 and self.heads < 2:
            weight = self.disentanglement_weight
            raise UserError(f"disentanglement_weight must be 0 where there is one head, got {weight}")
        if self.bases and len(self.bases) != self.heads:
            raise UserError(f"bases must be empty or {self.heads} (heads), got {len(self.bases)}")


class MultiHead(Composition):
    """`W [Q_1(W_1 x), …, Q_M(W_M x)]` or `Q_1(W_1 x) + … + Q_M(W_M x)`."""

    Config = MultiHeadConfig

    def __init__(self, config: MultiHeadConfig) -> None:
        super().__init__(config)
        self._take_parts([QuantizerConfig.family.build(base) for base in config.bases or [config.base] * config.heads])
        self.code_dim = config.code_dim
        widths = [part.code_dim for part in self.parts]
        if config.combine == "sum" and set(widths) != {config.code_dim}:
            raise UserError(f"the bases' code_dim must be code_dim ({config.code_dim}) to be added up, got {widths}")
        if config.disentanglement_weight > 0 and len(set(widths)) > 1:
            raise UserError(f"disentanglement_weight must be 0 where heads differ in code_dim, got {widths}")
        self.views = nn.ModuleList([nn.Linear(config.code_dim, width, bias=False) for width in widths])
        self.projection = None
        if config.combine == "concatenate":
            self.projection = nn.Linear(sum(widths), config.code_dim, bias=False)

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        outputs = [part.quantize(view(latents)) for part, view in zip(self.parts, self.views, strict=True)]
        heads = [output.codes for output in outputs]
        losses = sum_terms([output.losses for output in outputs])
        if self.config.disentanglement_weight > 0:
            losses["disentanglement"] = self.config.disentanglement_weight * _mean_squared_cosine(heads)
        return QuantizerOutput(
            codes=self._combined(heads),
            indices=join_indices([output.indices for output in outputs]),
            losses=losses,
            metrics=part_metrics([output.metrics for output in outputs]),
        )

    def _combined(self, heads: list[Tensor]) -> Tensor:
        if self.projection is None:
            return torch.stack(heads).sum(dim=0)
        joined = torch.cat(heads, dim=2)
        # As one matrix: how a product of more dimensions is computed depends on what wants a gradient.
        projected: Tensor = self.projection(joined.flatten(0, 1))
        return projected.view(*joined.shape[:2], self.code_dim)

    def lookup(self, indices: Tensor) -> Tensor:
        heads = split_indices(indices, [part.num_codebooks for part in self.parts])
        return self._combined([part.lookup(head) for part, head in zip(self.parts, heads, strict=True)])

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        for part, view in zip(self.parts, self.views, strict=True):
            if part.samples_wanted > 0:
                part.initialize(view(latents.float()))


def _mean_squared_cosine(heads: list[Tensor]) -> Tensor:
    directions = [F.normalize(head.reshape(-1, head.shape[-1]), dim=1) for head in heads]
    cosines = torch.stack([(first * second).sum(dim=1) for first, second in combinations(directions, 2)])
    return cosines.square().sum() / max(1, cosines.numel())
