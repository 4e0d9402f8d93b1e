"""Two levels of codes: a coarse grid for the whole, a fine grid for what it does not say.

Paper: Generating Diverse High-Fidelity Images with VQ-VAE-2 (Razavi et al., 2019), arXiv:1906.00446, section 3.1: the
top level quantizes latents at half the resolution; the bottom level sees the latents beside the decoded top codes; the
decoder gets both. Losses are summed over levels. The whole is one quantizer from a grid of latents to as many codes, so
that any encoder and decoder can stand around it; a picture's tokens are one sequence, the top level's first, then the
bottom level's, both row by row, and both levels have one codebook_size (an index means another code in each).

Departs from the paper in size: the networks between the levels are one or two convolutions, without residual blocks,
which encoder and decoder have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge, Len, MultipleOf
from torch import Tensor, nn

from visual_tokenizer.errors import UserError
from visual_tokenizer.layers.convolution import map_from_tokens, tokens_from_map
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig, part_metrics, sum_terms


def _small_vq() -> Any:
    return QuantizerConfig.family.config({"type": "vq", "codebook_size": 512})


@dataclass(kw_only=True)
class HierarchicalConfig(QuantizerConfig):
    """Fields of the two levels."""

    top: QuantizerConfig = field(default_factory=_small_vq)
    """Quantizer of the coarse level; each position by itself."""

    bottom: QuantizerConfig = field(default_factory=_small_vq)
    """Quantizer of the fine level; each position by itself, with as many codes and codebooks as the top."""

    grid: Annotated[list[Annotated[int, Ge(2), MultipleOf(2)]], Len(2, 2)] = field(default_factory=lambda: [4, 4])
    """[height, width] of the latents. The top level has half of each."""

    code_dim: Annotated[int, Ge(1)] = 64
    """Channels of latents and codes."""


class Hierarchical(Quantizer):
    """`q_top = Q_t(down(x))`, `q_bottom = Q_b(W [x, up(q_top)])`, codes `V [up'(q_top), q_bottom]`."""

    Config = HierarchicalConfig

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__(config)
        self.top = QuantizerConfig.family.build(config.top)
        self.bottom = QuantizerConfig.family.build(config.bottom)
        for name in ("codebook_size", "num_codebooks", "latent_grid"):
            if getattr(self.top, name) != getattr(self.bottom, name):
                raise UserError(
                    f"top and bottom must have one {name}, got {getattr(self.top, name)} "
                    f"and {getattr(self.bottom, name)}"
                )
        if self.top.latent_grid is not None:
            raise UserError(f"top must take each position by itself, got '{config.top.type}'")
        self.codebook_size, self.num_codebooks = self.top.codebook_size, self.top.num_codebooks
        self.code_dim = width = config.code_dim
        self.latent_grid = (config.grid[0], config.grid[1])
        self.top_grid = (config.grid[0] // 2, config.grid[1] // 2)
        self.lengths = [math.prod(self.top_grid), math.prod(self.latent_grid)]
        self.num_tokens = sum(self.lengths)
        self.to_top = nn.Sequential(
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, self.top.code_dim, 3, padding=1),
        )
        self.from_top = nn.ConvTranspose2d(self.top.code_dim, width, 4, stride=2, padding=1)
        self.to_bottom = nn.Conv2d(2 * width, self.bottom.code_dim, 1)
        self.upsample_top = nn.ConvTranspose2d(self.top.code_dim, width, 4, stride=2, padding=1)
        self.combine = nn.Conv2d(width + self.bottom.code_dim, width, 1)

    def _seen_by_top(self, latents: Tensor) -> Tensor:
        assert self.latent_grid is not None
        return tokens_from_map(self.to_top(map_from_tokens(latents, self.latent_grid)))

    def _seen_by_bottom(self, latents: Tensor, top_codes: Tensor) -> Tensor:
        assert self.latent_grid is not None
        decoded = self.from_top(map_from_tokens(top_codes, self.top_grid))
        return tokens_from_map(self.to_bottom(torch.cat([map_from_tokens(latents, self.latent_grid), decoded], dim=1)))

    def _combined(self, top_codes: Tensor, bottom_codes: Tensor) -> Tensor:
        assert self.latent_grid is not None
        upsampled = self.upsample_top(map_from_tokens(top_codes, self.top_grid))
        both = torch.cat([upsampled, map_from_tokens(bottom_codes, self.latent_grid)], dim=1)
        return tokens_from_map(self.combine(both))

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        top = self.top.quantize(self._seen_by_top(latents))
        bottom = self.bottom.quantize(self._seen_by_bottom(latents, top.codes))
        return QuantizerOutput(
            codes=self._combined(top.codes, bottom.codes),
            indices=torch.cat([top.indices, bottom.indices], dim=1),
            losses=sum_terms([top.losses, bottom.losses]),
            metrics=part_metrics([top.metrics, bottom.metrics]),
        )

    def lookup(self, indices: Tensor) -> Tensor:
        top, bottom = indices.split(self.lengths, dim=1)
        return self._combined(self.top.lookup(top), self.bottom.lookup(bottom))

    def token_vectors(self, indices: Tensor) -> Tensor:
        """Return the codes of the bottom level, of which a picture has four times as many as of the top."""
        return self.bottom.token_vectors(indices)

    @property
    def samples_wanted(self) -> int:
        wanted = zip((self.top.samples_wanted, self.bottom.samples_wanted), self.lengths, strict=True)
        return max(math.ceil(samples / tokens) for samples, tokens in wanted) * self.lengths[1]

    @torch.no_grad()
    def initialize(self, latents: Tensor) -> None:
        pictures = self.whole_pictures(latents.float())
        seen = self._seen_by_top(pictures)
        if self.top.samples_wanted > 0:
            self.top.initialize(seen.reshape(-1, self.top.code_dim))
        if self.bottom.samples_wanted > 0:
            seen = self._seen_by_bottom(pictures, self.top.codes_in_use(seen))
            self.bottom.initialize(seen.reshape(-1, self.bottom.code_dim))
