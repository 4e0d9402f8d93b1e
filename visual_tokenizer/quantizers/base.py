"""What every quantizer has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from visual_tokenizer.outputs import QuantizerOutput
from visual_tokenizer.registry import PartConfig


class LatentsError(ValueError):
    """Latents of the wrong shape or kind."""


class IndexOutOfRangeError(IndexError):
    """An index that no code has."""


@dataclass(kw_only=True)
class QuantizerConfig(PartConfig, package="visual_tokenizer.quantizers"):
    """Fields that every quantizer has (none)."""


class Quantizer(nn.Module):
    """Maps latents (B, N, C) to codes and indices, and indices back to codes.

    A subclass sets `codebook_size` (codes of one codebook), `code_dim` (C) and, where a position has several indices,
    `num_codebooks`, and implements `quantize` and `lookup`.
    """

    Config: ClassVar[type[QuantizerConfig]]
    codebook_size: int
    code_dim: int
    num_codebooks: int = 1

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

    def after_load(self) -> None:
        """Read back what is kept on the host, after weights were loaded."""

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Quantize.

        The arithmetic is float32 whatever the autocast and the dtype of `latents`; codes come back in that dtype.

        Args:
            latents: (B, N, C) float, C = `code_dim`.

        Raises:
            LatentsError: another shape or an integer dtype.
            RuntimeError: NaN or infinity among the latents.
        """
        if latents.ndim != 3 or latents.shape[-1] != self.code_dim or not latents.is_floating_point():
            raise LatentsError(
                f"latents must be float (B, N, {self.code_dim}), got {tuple(latents.shape)} {latents.dtype}"
            )
        with torch.autocast(latents.device.type, enabled=False):
            exact = latents.float()
            torch._assert_async(torch.isfinite(exact).all(), "latents hold NaN or infinity")
            output = self.quantize(exact)
        output.codes = output.codes.to(latents.dtype)
        return output

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
            IndexOutOfRangeError: an index below 0 or not below `codebook_size`.
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
        with torch.autocast(indices.device.type, enabled=False):
            return self.lookup(indices.long())

    @property
    def samples_wanted(self) -> int:
        """Latents that `initialize` still waits for; 0 once the codebook is ready."""
        return 0

    def initialize(self, latents: Tensor) -> None:
        """Make the first codebook from this rank's latents (M, C)."""


def _call_after_load(module: Quantizer, _incompatible_keys: object) -> None:
    module.after_load()


PART = Quantizer


def batch_metrics(counts: Tensor) -> dict[str, Tensor]:
    """Return perplexity exp(H) and usage (share of codes used) of one batch's counts (K,)."""
    shares = counts / counts.sum().clamp_min(1)
    entropy = -(shares * shares.clamp_min(1e-12).log()).sum()
    return {"perplexity": entropy.exp(), "usage": (counts > 0).float().mean()}
