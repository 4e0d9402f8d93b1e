"""Finite scalar quantization: each channel is bounded and rounded to a few levels; the codebook is their product.

Paper: Finite Scalar Quantization: VQ-VAE Made Simple (Mentzer et al., 2023), arXiv:2309.15505, section 3.1 and the code
of appendix A. The published grid rounds to integers and divides by ⌊L/2⌋. An even L has no integers symmetric around 0:
it gets −L/2 … L/2−1, so the codes start at −1 and end at 1 − 2/L, never at +1; a shift of the bound keeps 0 on the
code 0. The symmetric grid puts L equally spaced codes from −1 to +1, as in Scaling Transformers for Low-Bitrate
High-Quality Speech Coding (Parker et al., 2024), arXiv:2411.19842, section 3.2, from which the training noise comes as
well: tanh(z) + U(−1, 1)/(L−1) in place of the rounded value. Codes of one grid mean nothing to the other.

Departs from vector-quantize-pytorch 1.32, whose `noise_dropout` adds U(−½, ½) to the rounded and normalised code
whatever L, then clamps: here the noise replaces the rounding and is as wide as one bin, on either grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Interval, Len
from torch import Tensor

from visual_tokenizer.codebooks.packing import IndexOrder, pack, place_values, unpack
from visual_tokenizer.codebooks.usage import usage_metrics
from visual_tokenizer.errors import UserError
from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.quantizers.base import Quantizer, QuantizerConfig

EXACT_INTEGERS = 2**24
"""Largest codebook whose indices float32 adds up exactly, in a third of the time of integers."""


@dataclass(kw_only=True)
class FSQConfig(QuantizerConfig):
    """Fields of FSQ."""

    levels: Annotated[list[Annotated[int, Ge(2)]], Len(1)] = field(default_factory=lambda: [8, 5, 5, 5])
    """Levels of each channel; their product is the codebook size, below 2^31."""

    grid: Literal["published", "symmetric"] = "published"
    """Where the codes of a channel lie: −1 … 1 − 2/L for even L and −1 … 1 for odd L, or −1 … 1 for every L."""

    index_order: IndexOrder = "first_fastest"
    """Which channel changes from one index to the next; the published code has the first."""

    epsilon: Annotated[float, Interval(gt=0, lt=1)] = 1e-3
    """How far the published grid's bound reaches past the outer levels, which keeps them reachable by rounding. The
    symmetric grid has no such margin: its outer levels are reached from half a bin inside."""

    noise: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Probability with which, in training, a channel of a token gets uniform noise of one bin's width instead of being
    rounded. Indices are always those of rounding."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.prod(self.levels) >= 2**31:
            raise UserError(f"levels must have a product below 2^31, got {math.prod(self.levels)}")


class _BoundAndRound(torch.autograd.Function):
    """From latents to codes and integers; the gradient is that of the bound alone, as if nothing had been rounded.

    Channels come first inside, so that a channel's constants meet a long row of values: with rows of five channels,
    each step takes five times as long.
    """

    @staticmethod
    def forward(
        context: Any, latents: Tensor, grid: tuple[Tensor, ...], is_noisy: Tensor | None, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        half_range, offset, shift, centre, scale = (constant[:, None, None] for constant in grid)
        channels = latents.movedim(-1, 0).contiguous()
        unit = (channels + shift).tanh_()
        bounded = (unit * half_range).sub_(offset)
        integers = bounded.round()
        values = integers if is_noisy is None or noise is None else torch.where(is_noisy, bounded + noise, integers)
        context.save_for_backward(unit, half_range / scale)
        context.mark_non_differentiable(integers)
        return (values - centre).div_(scale).movedim(0, -1).contiguous(), integers

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        unit, slope = context.saved_tensors
        factor = (unit * unit).mul_(-slope).add_(slope)
        return gradients[0] * factor.movedim(0, -1), None, None, None


class FSQ(Quantizer):
    """Rounds bounded channels; no codebook, no losses."""

    Config = FSQConfig
    levels: Tensor
    half_levels: Tensor
    places: Tensor
    half_range: Tensor
    offset: Tensor
    shift: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(self, config: FSQConfig) -> None:
        super().__init__(config)
        self.code_dim = len(config.levels)
        self.codebook_size = math.prod(config.levels)
        # The index of the code 0, in plain numbers: transformers builds models without storage.
        is_first_fastest = config.index_order == "first_fastest"
        self.middle, place = 0, 1
        for levels in config.levels if is_first_fastest else reversed(config.levels):
            self.middle, place = self.middle + place * (levels // 2), place * levels
        self.register_derived_buffers()

    def derived_buffers(self) -> dict[str, Tensor]:
        levels = torch.tensor(self.config.levels)
        # Integers −⌊L/2⌋ … L−1−⌊L/2⌋ on both grids; the middle of those of an even L is at −½.
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        constants = {
            "levels": levels,
            "half_levels": levels // 2,
            "places": place_values(levels, self.config.index_order),
            "offset": offset,
        }
        half_range = (levels - 1).float() / 2
        if self.config.grid == "symmetric":
            return constants | {
                "half_range": half_range,
                "shift": torch.zeros_like(offset),
                "centre": -offset,
                "scale": half_range,
            }
        half_range = (levels - 1).float() * (1 + self.config.epsilon) / 2
        return constants | {
            "half_range": half_range,
            "shift": torch.atanh(offset / half_range),
            "centre": torch.zeros_like(offset),
            "scale": (levels // 2).float(),
        }

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        is_noisy = noise = None
        if self.training and self.config.noise > 0:
            shape = (latents.shape[-1], *latents.shape[:-1])
            is_noisy = torch.rand(shape, device=latents.device) < self.config.noise
            noise = torch.rand(shape, device=latents.device) - 0.5
        grid = (self.half_range, self.offset, self.shift, self.centre, self.scale)
        codes, integers = _BoundAndRound.apply(latents, grid, is_noisy, noise)
        indices = self._pack(integers)
        return QuantizerOutput(codes=codes, indices=indices, metrics=usage_metrics(indices, self.codebook_size))

    def _pack(self, integers: Tensor) -> Tensor:
        """Return the indices of integers −⌊L/2⌋ … L−1−⌊L/2⌋, (C, B, N) float32 → (B, N) int64."""
        if self.codebook_size > EXACT_INTEGERS:
            return pack(integers.movedim(0, -1).long() + self.half_levels, self.places)
        return (integers * self.places[:, None, None]).sum(dim=0).long() + self.middle

    def lookup(self, indices: Tensor) -> Tensor:
        digits = unpack(indices, self.places, self.levels)
        return ((digits - self.half_levels).float() - self.centre) / self.scale
