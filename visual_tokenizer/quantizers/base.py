"""What every quantizer has in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from visual_tokenizer.codebooks.distributed import broadcast_from_first_rank
from visual_tokenizer.codebooks.usage import batch_metrics as batch_metrics
from visual_tokenizer.errors import IndexOutOfRangeError, UserError
from visual_tokenizer.outputs import ABSENT, QuantizerOutput
from visual_tokenizer.registry import PartConfig


class LatentsError(UserError):
    """Latents of the wrong shape or kind."""


@dataclass(kw_only=True)
class QuantizerConfig(PartConfig, package="visual_tokenizer.quantizers"):
    """Fields that every quantizer has (none)."""


class Quantizer(nn.Module):
    """Maps latents (B, N, C) to codes and indices, and indices back to codes.

    A subclass sets `codebook_size` (codes of one codebook), `code_dim` (C) and, where a position has several indices,
    `num_codebooks`, and implements `quantize` and `lookup`. One that looks at whole pictures, not at each position by
    itself, sets `latent_grid` and `num_tokens` too: its indices are (B, num_tokens[, num_codebooks]).
    """

    Config: ClassVar[type[QuantizerConfig]]
    codebook_size: int
    code_dim: int
    num_codebooks: int = 1
    latent_grid: tuple[int, int] | None = None
    num_tokens: int = 0

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config: Any = config
        self.register_load_state_dict_post_hook(_call_after_load)

    def derived_buffers(self) -> dict[str, Tensor]:
        """Return the constants that follow from the config: kept as buffers, never saved."""
        return {}

    def register_derived_buffers(self) -> None:
        """Make `derived_buffers` attributes that move with the module."""
        for name, value in self.derived_buffers().items():
            self.register_buffer(name, value, persistent=False)

    def token_grid(self, latent_grid: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of one picture's tokens, given that of its latents.

        Raises:
            LatentsError: not the grid that this quantizer was made for, nor that grid in a row.
        """
        if self.latent_grid is None:
            return latent_grid
        if latent_grid not in (self.latent_grid, (math.prod(self.latent_grid),)):
            raise LatentsError(f"this quantizer takes a grid of {self.latent_grid} latents only, got {latent_grid}")
        return (self.num_tokens,)

    def after_load(self) -> None:
        """Read back what is kept on the host, after weights were loaded."""

    def forward(self, latents: Tensor, present: Tensor | None = None) -> QuantizerOutput:
        """Quantize.

        The arithmetic is float32 whatever the autocast and the dtype of `latents`; codes come back in that dtype.

        Args:
            latents: (B, N, C) float, C = `code_dim`.
            present: (B, N) bool, which latents there are; None for all. The others are as if they had not been given:
                they have no code and no index, and nothing is learned or measured of them. Waits for the device.

        Raises:
            LatentsError: another shape or an integer dtype, or absent latents of a quantizer of whole pictures.
            RuntimeError: NaN or infinity among the latents.
        """
        if present is not None:
            return self._quantize_present(latents, present)
        if latents.ndim != 3 or latents.shape[-1] != self.code_dim or not latents.is_floating_point():
            raise LatentsError(
                f"latents must be float (B, N, {self.code_dim}), got {tuple(latents.shape)} {latents.dtype}"
            )
        if self.latent_grid is not None:
            self.token_grid((latents.shape[1],))
        with torch.autocast(latents.device.type, enabled=False):
            exact = latents.float()
            # A finite number times 0 is 0, and NaN or infinity times 0 is NaN: one sum, a tenth of isfinite's time.
            torch._assert_async(torch.isfinite((exact.detach() * 0).sum()), "latents hold NaN or infinity")
            output = self.quantize(exact)
        output.codes = output.codes.to(latents.dtype)
        return output

    def _quantize_present(self, latents: Tensor, present: Tensor) -> QuantizerOutput:
        """Quantize the present latents in a row, so that no quantizer needs to know of the others."""
        if self.latent_grid is not None:
            raise LatentsError(f"this quantizer takes whole grids of {self.latent_grid} latents only, got absent ones")
        output = self(latents[present][None])
        codes = output.codes.new_zeros(latents.shape)
        codes[present] = output.codes[0]
        indices = output.indices.new_full((*present.shape, *output.indices.shape[2:]), ABSENT)
        indices[present] = output.indices[0]
        return QuantizerOutput(codes, indices, output.losses, output.metrics)

    def quantize(self, latents: Tensor) -> QuantizerOutput:
        """Quantize (B, N, C) float32 latents."""
        raise NotImplementedError

    def lookup(self, indices: Tensor) -> Tensor:
        """Return the codes of indices that are known to be in range: (B, N[, num_codebooks]) → (B, N, C)."""
        raise NotImplementedError

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Return the codes of `indices`, as `forward` gives them in eval mode.

        Args:
            indices: int64 (B, N), or (B, N, num_codebooks) where a position has several.

        Raises:
            IndexOutOfRangeError: an index below 0 or not below `codebook_size`, or not one for each token of a picture.
        """
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise IndexOutOfRangeError(f"indices must be integers, got {indices.dtype}")
        if indices.numel():
            low, high = int(indices.min()), int(indices.max())
            if low < 0 or high >= self.codebook_size:
                wrong = low if low < 0 else high
                raise IndexOutOfRangeError(
                    f"index {wrong} is out of range: this codebook has indices 0 to {self.codebook_size - 1}"
                )
        if self.latent_grid is not None and indices.shape[1:2] != (self.num_tokens,):
            raise IndexOutOfRangeError(f"indices must be (B, {self.num_tokens}, …), got {tuple(indices.shape)}")
        with torch.autocast(indices.device.type, enabled=False):
            return self.lookup(indices.long())

    def token_vectors(self, indices: Tensor) -> Tensor:
        """Return a vector for each token by itself, near for tokens that mean nearly the same.

        The codes, unless a code is made of all tokens of a picture.

        Args:
            indices: int64 (B, n), or (B, n, num_codebooks) where a position has several; any n.

        Returns:
            (B, n, D), D the same for all tokens.
        """
        return self.indices_to_codes(indices)

    @property
    def samples_wanted(self) -> int:
        """Latents that `initialize` still waits for; 0 once the codebook is ready."""
        return 0

    def initialize(self, latents: Tensor) -> None:
        """Make the first codebook from this rank's latents (M, C)."""

    @torch.compiler.disable  # runs in the first step only
    def begin(self, latents: Tensor) -> None:
        """Make the first codebook from a training step's latents (…, C)."""
        self.initialize(latents.detach().reshape(-1, self.code_dim))

    def whole_pictures(self, latents: Tensor) -> Tensor:
        """Fold (M, C) latents into as many pictures as they fill, (B, N, C); N is 1 where positions stand alone."""
        length = 1 if self.latent_grid is None else math.prod(self.latent_grid)
        pictures = latents.shape[0] // length
        return latents[: pictures * length].reshape(pictures, length, latents.shape[1])

    @torch.no_grad()
    def codes_in_use(self, latents: Tensor) -> Tensor:
        """Return the codes that eval mode gives (B, N, C) float32 latents, whatever the mode; nothing learns."""
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        codes = self.quantize(latents).codes
        for module, is_training in modes:
            module.training = is_training
        return codes


def _call_after_load(module: Quantizer, _incompatible_keys: object) -> None:
    module.after_load()


PART = Quantizer


class Composition(Quantizer):
    """A quantizer of `parts` that each see every position, their indices side by side.

    A subclass hands its parts to `_take_parts` and sets `code_dim`.
    """

    parts: Any
    """An `nn.ModuleList` of quantizers; torch types its items as plain modules."""

    def _take_parts(self, parts: Sequence[Quantizer], repeats: int = 1) -> None:
        """Keep `parts`, each used `repeats` times.

        Raises:
            ValueError: they have codebooks of different sizes, or one looks at whole pictures and another does not.
        """
        kinds = {(part.codebook_size, part.latent_grid, part.num_tokens) for part in parts}
        if len(kinds) > 1:
            listed = ", ".join(f"{part.codebook_size} codes on grid {part.latent_grid}" for part in parts)
            raise UserError(f"bases must have the same codebook_size and grid of latents, got {listed}")
        self.parts = nn.ModuleList(parts)
        self.codebook_size, self.latent_grid, self.num_tokens = kinds.pop()
        self.num_codebooks = repeats * sum(part.num_codebooks for part in parts)

    @property
    def samples_wanted(self) -> int:
        return max(part.samples_wanted for part in self.parts)


def join_indices(parts: Sequence[Tensor]) -> Tensor:
    """Put indices side by side: each (B, L) or (B, L, n) → (B, L, sum of n); (B, L) if that sum is 1."""
    joined = torch.cat([part if part.ndim == 3 else part[..., None] for part in parts], dim=2)
    return joined[..., 0] if joined.shape[2] == 1 else joined


def split_indices(indices: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Undo `join_indices`; `counts` are the n."""
    several = indices[..., None] if indices.ndim == 2 else indices
    return [part[..., 0] if part.shape[2] == 1 else part for part in several.split(list(counts), dim=2)]


def sum_terms(terms: Sequence[Mapping[str, Tensor]], factor: float = 1.0) -> dict[str, Tensor]:
    """Add the scalars of each name, times `factor`."""
    names = dict.fromkeys(name for part in terms for name in part)
    return {name: factor * torch.stack([part[name] for part in terms if name in part]).sum() for name in names}


def part_metrics(metrics: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each metric over the parts, and perplexity and usage of each part as `usage_0` and so on.

    Where a part is composed itself, its own parts are `usage_0_0` and so on.
    """
    numbered: dict[str, Tensor] = {}
    rows: dict[str, list[Tensor]] = {}
    for number, part in enumerate(metrics):
        for name, value in part.items():
            kind, _, inner = name.partition("_")
            is_counted = kind in ("perplexity", "usage")
            if is_counted:
                numbered[f"{kind}_{number}_{inner}".rstrip("_")] = value
            if not (is_counted and inner):
                rows.setdefault(name, []).append(value.float())
    return {name: torch.stack(values).mean() for name, values in rows.items()} | numbered


def draw_levels(levels: int, dropout: float, device: torch.device) -> Tensor:
    """Return how many of the first levels a step keeps, an int64 scalar that is the same on every rank.

    All of them, but with probability `dropout` a number drawn evenly from 1 to `levels`.
    """
    draws = broadcast_from_first_rank(torch.rand(2, device=device))
    return torch.where(draws[0] < dropout, (draws[1] * levels).long() + 1, levels)
