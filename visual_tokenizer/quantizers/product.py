"""Product quantization: the channels are split into groups, each with a codebook of its own.

Papers: Product Quantization for Nearest Neighbor Search (Jégou et al., 2011), section II-B; the two branches of
ImageFolder: Autoregressive Image Generation with Folded Tokens (Li et al., 2024), arXiv:2410.01756, whose base is
`multi_scale`. K codes a group are K^G codes a position. Losses are averaged over groups, as ImageFolder's are,
which for groups of equal width is the mean over all channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

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


@dataclass(kw_only=True)
class ProductConfig(QuantizerConfig):
    """Fields of product quantization."""

    base: QuantizerConfig = field(
        default_factory=lambda: QuantizerConfig.family.config({"type": "vq", "codebook_size": 1024, "code_dim": 16})
    )
    """Quantizer of a group, whose code_dim is the group's width."""

    groups: Annotated[int, Ge(1)] = 2
    """Number of groups."""

    shared: bool = False
    """Let all groups use one quantizer, in place of one each."""

    bases: list[QuantizerConfig] = field(default_factory=list)
    """Quantizers of the groups in the order of the channels, where they are not all alike: `groups` of them, of equal
    codebook_size. They take the place of `base`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bases and len(self.bases) != self.groups:
            raise UserError(f"bases must be empty or {self.groups} (groups), got {len(self.bases)}")
        if self.bases and self.shared:
            raise UserError("shared must be false where bases are given, got true")


class Product(Composition):
    """`[Q_1(x_1), …, Q_G(x_G)]` of `x = [x_1, …, x_G]`."""

    Config = ProductConfig

    def __init__(self, config: ProductConfig) -> None:
        super().__init__(config)
        built = config.bases or [config.base] * (1 if config.shared else config.groups)
        self.fold = config.groups if config.shared else 1
        self._take_parts([QuantizerConfig.family.build(base) for base in built], repeats=self.fold)
        self.code_dim = self.fold * sum(part.code_dim for part in self.parts)

    def _split(self, latents: Tensor) -> list[Tensor]:
        """Return the latents of each part, (fold · B, N, C_part): groups that share one are further pictures."""
        return [
            torch.cat(part.chunk(self.fold, dim=2))
            for part in latents.split([self.fold * part.code_dim for part in self.parts], dim=2)
        ]

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        outputs = [part.quantize(group) for part, group in zip(self.parts, self._split(latents), strict=True)]
        return QuantizerOutput(
            codes=torch.cat([codes for output in outputs for codes in output.codes.chunk(self.fold)], dim=2),
            indices=join_indices([indices for output in outputs for indices in output.indices.chunk(self.fold)]),
            losses=sum_terms([output.losses for output in outputs], 1 / len(outputs)),
            metrics=part_metrics([output.metrics for output in outputs]),
        )

    def lookup(self, indices: Tensor) -> Tensor:
        groups = split_indices(indices, [part.num_codebooks for part in self.parts for _ in range(self.fold)])
        parts = [part for part in self.parts for _ in range(self.fold)]
        return torch.cat([part.lookup(group) for part, group in zip(parts, groups, strict=True)], dim=2)

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        groups = self._split(self.whole_pictures(latents))
        for part, group in zip(self.parts, groups, strict=True):
            if part.samples_wanted > 0:
                # Groups that share a quantizer take turns, because it may look at the first latents only.
                turns = torch.stack(group.chunk(self.fold), dim=1)
                part.initialize(turns.reshape(-1, part.code_dim))
