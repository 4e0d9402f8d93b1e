"""Multi-scale residual quantization: each scale quantizes what is left, on a finer grid than the one before.

Paper: Visual Autoregressive Modeling: Scalable Image Generation via Next-Scale Prediction (Tian et al., 2024),
arXiv:2404.02905, algorithms 1 and 2. As in the authors' code the residual is averaged over areas down to a scale, its
codes are interpolated bicubically up to the last scale and pass a convolution φ, of which scales share some, beside
themselves; both losses compare the sum so far with the latents, and are averaged over scales. They take the place of
the base's own `commitment` and `codebook`; whatever else the base adds (an entropy) is averaged and kept. A picture's
tokens are one sequence, scale after scale, row by row. `scale_dropout` is ImageFolder's quantizer dropout (Li et al.,
2024), arXiv:2410.01756, drawn for a step here, not for a picture.

Departs from it where the base puts its codes on a sphere: they stay there (the authors look up unnormalised ones). The
latents' gradient is straight-through whatever the base, so that bases that learn from the decoder do not learn here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Interval, Len
from torch import Tensor, nn
from torch.nn import functional as F

from visual_tokenizer.codebooks.assignment import mean_square
from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.convolution import map_from_tokens, tokens_from_map
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig, draw_levels, part_metrics, sum_terms

REPLACED = ("commitment", "codebook")
"""Losses of a base that compare one scale's codes with its input."""


def _gradient_vq() -> Any:
    section = {"type": "vq", "codebook_size": 1024, "update": {"type": "gradient"}}
    return QuantizerConfig.family.config(section)


Side = Annotated[int, Ge(1)]


@dataclass(kw_only=True)
class MultiScaleConfig(QuantizerConfig):
    """Fields of multi-scale residual quantization."""

    base: QuantizerConfig = field(default_factory=_gradient_vq)
    """Quantizer of a scale; each position by itself."""

    scales: Annotated[list[Side | Annotated[list[Side], Len(2, 2)]], Len(1)] = field(
        default_factory=lambda: [1, 2, 3, 4]
    )
    """Grids from coarse to fine, each a side or [height, width]; the last is that of the latents."""

    shared: bool = True
    """Let all scales use one quantizer, in place of one each."""

    phi_ratio: Annotated[float, Interval(ge=0, le=1)] = 0.5
    """Share r of the convolution in φ(h) = (1 − r) h + r conv(h); 0 leaves it out."""

    phi_count: Annotated[int, Ge(1)] = 4
    """Number of convolutions, which scales share evenly from coarse to fine; no more than are used."""

    commitment_weight: Annotated[float, Ge(0)] = 0.25
    """Factor β on the mean over scales of mean(‖f − sg(f̂)‖²), f̂ the sum so far."""

    scale_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Probability that a training step's codes are the sum of the first n scales only, n even from 1 to their number.
    Indices and losses are always those of all scales."""

    def __post_init__(self) -> None:
        super().__post_init__()
        *grids, last = [_grid(scale) for scale in self.scales]
        if any(grid[0] > last[0] or grid[1] > last[1] for grid in grids):
            raise UserError(f"scales must not be larger than the last, the grid of the latents, got {self.scales}")


def _grid(scale: int | list[int]) -> tuple[int, ...]:
    return (scale, scale) if isinstance(scale, int) else tuple(scale)


def _nearest_phi(scale: int, scales: int, count: int) -> int:
    """Return which of `count` convolutions a scale uses: the nearest on a line, at the places of the authors' code."""
    edge = 1 / 3 / count if count == 4 else 1 / 2 / count
    places = np.linspace(edge, 1 - edge, count)
    return int(np.argmin(np.abs(places - scale / max(1, scales - 1))))


class MultiScale(Quantizer):
    """`f̂ ← f̂ + φ(up(Q(down(f − f̂))))`, scale after scale."""

    Config = MultiScaleConfig

    def __init__(self, config: MultiScaleConfig) -> None:
        super().__init__(config)
        self.grids = [(int(grid[0]), int(grid[1])) for grid in map(_grid, config.scales)]
        self.lengths = [math.prod(grid) for grid in self.grids]
        self.latent_grid, self.num_tokens = self.grids[-1], sum(self.lengths)
        built = 1 if config.shared else len(self.grids)
        # Typed as anything, because torch types the items of a list as plain modules.
        self.parts: Any = nn.ModuleList([QuantizerConfig.family.build(config.base) for _ in range(built)])
        if self.bases[0].latent_grid is not None:
            raise UserError(f"base must take each position by itself, got '{config.base.type}'")
        self.codebook_size, self.code_dim = self.bases[0].codebook_size, self.bases[0].code_dim
        self.num_codebooks = self.bases[0].num_codebooks
        nearest = [_nearest_phi(scale, len(self.grids), config.phi_count) for scale in range(len(self.grids))]
        used = sorted(set(nearest))  # one that no scale is nearest to would never get a gradient
        self.phi_of = [used.index(number) for number in nearest]
        count = len(used) if config.phi_ratio > 0 else 0
        self.phi = nn.ModuleList([nn.Conv2d(self.code_dim, self.code_dim, 3, padding=1) for _ in range(count)])

    @property
    def bases(self) -> list[Quantizer]:
        """The quantizer of each scale."""
        return [self.parts[scale % len(self.parts)] for scale in range(len(self.grids))]

    def _seen(self, residual: Tensor, scale: int) -> Tensor:
        """Return what a scale quantizes of the (B, C, h, w) residual, (B, L, C)."""
        grid = self.grids[scale]
        small = residual if grid == self.latent_grid else F.interpolate(residual, size=grid, mode="area")
        return tokens_from_map(small)

    def _grown(self, codes: Tensor, scale: int) -> Tensor:
        """Return what a scale's codes (B, L, C) add to the latents, (B, C, h, w)."""
        grown = map_from_tokens(codes, self.grids[scale])
        if self.grids[scale] != self.latent_grid:
            grown = F.interpolate(grown, size=self.latent_grid, mode="bicubic")
        if len(self.phi) == 0:
            return grown
        ratio = self.config.phi_ratio
        return grown * (1 - ratio) + self.phi[self.phi_of[scale]](grown) * ratio

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        assert self.latent_grid is not None
        config, count = self.config, len(self.grids)
        if self.training and self.samples_wanted > 0:
            self.begin(latents)
        kept = None
        if self.training and config.scale_dropout > 0:
            kept = draw_levels(count, config.scale_dropout, latents.device)
        goal = map_from_tokens(latents, self.latent_grid)
        outputs, commitments, differences = [], [], []
        total = shown = torch.zeros_like(goal)
        for scale, base in enumerate(self.bases):
            output = base.quantize(self._seen(goal - total.detach(), scale))
            table = base.lookup(output.indices)
            # The codes as they were before the base learned, with the table's gradient.
            added = self._grown(output.codes.detach() + (table - table.detach()), scale)
            total = total + added
            shown = total if kept is None else shown + torch.where(scale < kept, added, 0.0)
            commitments.append(mean_square(goal, total.detach()))
            differences.append(mean_square(total, goal.detach()))
            outputs.append(output)
        others = [{k: v for k, v in output.losses.items() if k not in REPLACED} for output in outputs]
        losses = {**sum_terms(others, 1 / count), "codebook": torch.stack(differences).mean()}
        if config.commitment_weight > 0:
            losses["commitment"] = config.commitment_weight * torch.stack(commitments).mean()
        return QuantizerOutput(
            codes=tokens_from_map(shown.detach() + (goal - goal.detach())),
            indices=torch.cat([output.indices for output in outputs], dim=1),
            losses=losses,
            metrics={
                **part_metrics([output.metrics for output in outputs]),
                "quantization_error": commitments[-1].detach() * self.code_dim,
            },
        )

    def lookup(self, indices: Tensor) -> Tensor:
        scales = indices.split(self.lengths, dim=1)
        added = [
            self._grown(base.lookup(found), s) for s, (base, found) in enumerate(zip(self.bases, scales, strict=True))
        ]
        total = torch.zeros_like(added[0])
        for grown in added:
            total = total + grown
        return tokens_from_map(total)

    def token_vectors(self, indices: Tensor) -> Tensor:
        """Return the codes of the last scale's base, before they grow to a grid."""
        return self.bases[-1].token_vectors(indices)

    @property
    def samples_wanted(self) -> int:
        """What fills the shared base's pool, or that of the last scale's; coarser scales have fewer tokens."""
        wanted = max(part.samples_wanted for part in self.parts)
        tokens = self.num_tokens if self.config.shared else self.lengths[-1]
        return math.ceil(wanted / tokens) * self.lengths[-1]

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        assert self.latent_grid is not None
        residual = map_from_tokens(self.whole_pictures(latents.float()), self.latent_grid)
        all_seen = []
        for scale, base in enumerate(self.bases):
            seen = self._seen(residual, scale)
            all_seen.append(seen)
            if base.samples_wanted > 0:
                # Shared codes begin with areas of the latents at every scale, for want of residuals.
                scales = range(len(self.grids)) if self.config.shared else [scale]
                base.initialize(torch.cat([self._seen(residual, s) for s in scales], dim=1).reshape(-1, self.code_dim))
            residual = residual - self._grown(base.codes_in_use(seen), scale)
        if self.config.shared:
            self.bases[0].initialize(torch.cat(all_seen, dim=1).reshape(-1, self.code_dim))
